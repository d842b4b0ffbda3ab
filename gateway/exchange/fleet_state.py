"""The fleet and the policy in force, and the load of the pools, as heartbeats tell it."""

import secrets
from collections.abc import Collection

from gateway.exchange.turns import WindowTurns
from policies import Option, Policy, compile_options, situation
from streams.config.active_policy import ActivePolicy, DecisionContext
from streams.config.declarations import Declarations, load_fleet, load_policy
from streams.config.fleet_follower import FleetFollower
from streams.config.policy_follower import PolicyFollower
from streams.config.token_counting import TokenCounter
from streams.engine.clock import Clock
from streams.engine.text_digests import Digests
from streams.evidence.records import EvidenceWriter
from streams.kafka.follower import TopicFollower
from topics import Catalogue, Settings

WAIT_S_MIN, WAIT_S_MAX = 1.0, 300.0
# Of a pool without workers: about what it takes a supervisor to start one.
ABSENT_S = 10.0
RATE_WINDOW_S = 10.0


class FleetState:
    """Models, limits and load as a gateway knows them; it decides nothing by them.

    Raises:
        DeclarationError: fleet or policy can't be used.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        own = Declarations(load_fleet(settings.fleet), load_policy(settings.policy))
        begun = situation(compile_options(own.fleet), own.policy)
        catalogue = Catalogue(settings)
        writer = EvidenceWriter(catalogue, "gateway", Digests(catalogue, None, secrets.token_bytes))
        self._active = ActivePolicy(DecisionContext(begun, writer, TokenCounter({})))
        self._clock = clock
        self._turns = WindowTurns()
        self.followers: list[TopicFollower] = [
            FleetFollower(settings, self._active.report),
            PolicyFollower(settings, self._active, own, _exists_elsewhere, clock),
        ]

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._active.situation.policy

    def models(self) -> dict[str, tuple[Option, ...]]:
        """Return the options of each model that a pool declares, by the model's name."""
        return dict(self._active.situation.options.by_model)

    def options_of(self, model: str) -> tuple[Option, ...]:
        """Return the options of a model; empty if no pool serves it."""
        return self._active.situation.options.by_model.get(model, ())

    def default_model(self, path: str) -> str | None:
        """Return the model of a body that names none, as those of moderations may; else None."""
        return self._model_of("moderations") if path == "/v1/moderations" else None

    def _model_of(self, operation: str) -> str | None:
        """Return the first model that serves an operation, by name; None if there is none."""
        able = (m for m, o in self.models().items() if any(operation in x.operations for x in o))
        return min(able, default=None)

    def backlog_s(self, model: str) -> float | None:
        """Return the device time until the least loaded live pool of a model begins another.

        None if none of its pools has a live worker.
        """
        view = self._active.situation.view
        view.prune(self._clock.now())
        loads = [view.load(option.pool) for option in self.options_of(model)]
        return min((load.backlog_s for load in loads if load.workers), default=None)

    def retry_after_s(self, model: str) -> float:
        """Return after how long another try of a model may find room, by its pools' backlog."""
        backlog_s = self.backlog_s(model)
        wait_s = ABSENT_S if backlog_s is None else backlog_s
        return min(max(wait_s, WAIT_S_MIN), WAIT_S_MAX)

    def rate_wait_s(self, tenant: str) -> float:
        """Return after how long a tenant's rate takes one more: routers count it in windows."""
        rate = self.policy.limits_of(tenant).rate_per_s
        if rate is None:
            return WAIT_S_MIN
        window_s = _window_s(rate)
        return window_s - self._clock.now() % window_s

    def rate_turn_s(self, tenant: str) -> float:
        """Return after how long a tenant's rate takes one more beside those who wait already.

        Who is told so has a turn then, which nobody else is told.
        """
        rate = self.policy.limits_of(tenant).rate_per_s
        if rate is None:
            return WAIT_S_MIN
        return self._turns.wait_s(tenant, self._clock.now(), rate, _window_s(rate))


def _window_s(rate_per_s: float) -> float:
    return max(RATE_WINDOW_S, 1.0 / rate_per_s)


async def _exists_elsewhere(_pools: Collection[str]) -> None:
    """Check nothing: a gateway uses no topic of a pool."""
