"""What runs requests: the worker's runtime, the backends, and the heartbeats.

Belongs here: the contract of a backend and its implementations, and how a request of a pool is
taken, run and ended. Does not: where it should have gone (``policies``), or how its effects are
made to last (``streams``).
"""

from workers.attempts import Attempts
from workers.backend import Backend, BackendSettingError, Call, CallError, Load, Outcome
from workers.breaker import Breakers
from workers.openai import OpenAIBackend
from workers.run import UnknownPoolError, run_worker
from workers.runtime import Worker
from workers.simulated import SimulatedBackend

__all__ = [
    "Attempts",
    "Backend",
    "BackendSettingError",
    "Breakers",
    "Call",
    "CallError",
    "Load",
    "OpenAIBackend",
    "Outcome",
    "SimulatedBackend",
    "UnknownPoolError",
    "Worker",
    "run_worker",
]
