"""`shunter worker --check`: whether a pool's backend serves what the fleet declares."""

import asyncio

from policies import compile_options
from policies.config.fleet import OpenAIBackendConfig as DeclaredOpenAI
from shunter.processes.worker import make_backend, served_by
from streams.config.declarations import load_fleet, load_policy
from streams.engine.clock import SystemClock
from topics import Settings
from workers.backends.openai.inspection import ServerFinding, inspect_server


def check_worker(pool: str, settings: Settings) -> list[ServerFinding]:
    """Return what is well with a pool's backend, and what is missing; nothing is served.

    Raises:
        DeclarationError: fleet or policy can't be used.
        UnknownPoolError: the fleet has no such pool.
        BackendSettingError: its backend can't be made of what it declares.
    """
    fleet, policy = load_fleet(settings.fleet), load_policy(settings.policy)
    served = served_by(pool, compile_options(fleet))
    declared = fleet.pools[pool].backend
    if isinstance(declared, DeclaredOpenAI):
        return asyncio.run(inspect_server(declared, served))
    make_backend(fleet.pools[pool], served, policy, SystemClock())
    return [ServerFinding("ok", declared.type, "its models are there, in the worker itself")]
