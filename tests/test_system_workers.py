"""Two workers of one pool on a model server: they share the work, and one leaves in peace."""

import asyncio
import copy
import signal
from pathlib import Path

import pytest
from model_server import Exchange, good, serving
from system import FLEET, System, chat, eventually

pytestmark = pytest.mark.kafka


async def test_a_worker_that_is_stopped_leaves_what_it_can_not_finish_to_the_other(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    blocked = asyncio.Event()

    async def model(x: Exchange) -> None:
        if x.body is not None and x.body.get("stream"):
            await blocked.wait()
        await good(x)

    ids = [f"c-{n}" for n in range(12)]
    async with serving(model) as server:
        pool = FLEET["pools"]["premium-eu"]
        backend = {"type": "openai", "base_url": server.base_url}
        fleet = {"pools": {"premium-eu": pool | {"backend": backend}}}
        env = {"SHUNTER_DRAIN_S_MAX": "0.5", "SHUNTER_SESSION_TIMEOUT_MS": "6000"}
        async with System(
            kafka, prefix, tmp_path, fleet=fleet, policy_speed=1.0, extra_env=env
        ) as system:
            system.start("router", "premium-eu", "premium-eu#1")
            for request_id in ids:
                await system.publish(chat(request_id))

            async def all_run() -> bool:
                return len({e.writer for e in asked(server.asked)}) == len(ids)

            await eventually(all_run, "all run", 30)
            stopped = system.processes.pop("premium-eu#1")
            stopped.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(stopped.wait, 20) == 0
            blocked.set()
            await system.wait_for_results(ids)
            assert all(len(system.results[name]) == 1 for name in ids)
            writers = {e["writer"] for e in system.evidence if e["step"] == "executed"}
            assert writers == {f"worker/premium-eu/{name}" for name in ("premium-eu-0",)}
        # What the stopped one ran was run a second time.
        assert len(asked(server.asked)) > len(ids)


def asked(exchanges: list[Exchange]) -> list[Exchange]:
    return [exchange for exchange in exchanges if exchange.body.get("stream")]


async def test_a_pool_that_never_answers_is_left_and_avoided(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async def mute(x: Exchange) -> None:
        # The metrics are answered, so that it looks well from outside.
        if isinstance(x.body, dict) and x.body.get("stream"):
            await asyncio.Event().wait()
        await good(x)

    async with serving(mute) as server:
        pool = FLEET["pools"]["premium-eu"] | {"backend": {"type": "simulated"}}
        backend = {"type": "openai", "base_url": server.base_url, "first_token_s_max": 1.0}
        # Of two alike, the first by name is taken.
        fleet = {"pools": {"mute": copy.deepcopy(pool) | {"backend": backend}, "premium-eu": pool}}
        async with System(kafka, prefix, tmp_path, fleet=fleet, policy_speed=1.0) as system:
            system.start_all()
            first: list[str] = []

            async def one_fell_back() -> bool:
                first.append(f"a-{len(first)}")
                await system.publish(chat(first[-1]))
                await system.read()
                return any(fallbacks(system, name) for name in system.results)

            await eventually(one_fell_back, "one falls back", 40)
            await system.wait_for_results(first)
            assert {system.result(name)["status"] for name in first} == {"completed"}
            assert {system.result(name)["placement"]["pool"] for name in first} == {"premium-eu"}
            fell = {f["pool"] for name in first for f in fallbacks(system, name)}
            assert fell == {"mute"}
            tried = len(asked(server.asked))
            later = [f"b-{n}" for n in range(20)]
            for request_id in later:
                await system.publish(chat(request_id))
            await system.wait_for_results(later)
            # Its circuit is open: nothing is sent but a probe now and then.
            assert len(asked(server.asked)) - tried <= 2
            assert sum(bool(fallbacks(system, name)) for name in later) <= 2


def fallbacks(system: System, request_id: str) -> list[dict[str, str]]:
    return system.result(request_id)["placement"]["fallbacks"]
