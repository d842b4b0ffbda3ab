"""A pool on a model server that can fall silent: it takes each call, and answers none."""

import asyncio
import copy
from dataclasses import dataclass, field
from typing import Any

from model_server import Exchange, ModelServer, good
from running_system import FLEET

MUTE = "mute-eu"


def fleet_with(server: ModelServer) -> dict[str, Any]:
    """Return the fleet of the tests, and a pool on this server that is cheaper than all others."""
    fleet = copy.deepcopy(FLEET)
    backend = {"type": "openai", "base_url": server.base_url, "first_token_s_max": 1.0}
    like = copy.deepcopy(fleet["pools"]["premium-eu"])
    fleet["pools"][MUTE] = like | {"usd_per_hour": 0.01, "backend": backend}
    return fleet


@dataclass
class MuteServer(ModelServer):
    """Answers at once, until it falls silent."""

    calls: int = 0
    """Requests since it last began to speak, or to be silent; no probes."""
    _speaks: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.behave = self._answer
        self.speak()

    def fall_silent(self) -> None:
        """Answer nothing, probes neither."""
        self._speaks.clear()
        self.calls = 0

    def speak(self) -> None:
        """Answer again."""
        self._speaks.set()
        self.calls = 0

    async def _answer(self, x: Exchange) -> None:
        # Kept by its maker for tests that look at each; here they are many, and large.
        self.seen.clear()
        self.calls += isinstance(x.body, dict) and bool(x.body.get("stream"))
        await self._speaks.wait()
        await good(x)
