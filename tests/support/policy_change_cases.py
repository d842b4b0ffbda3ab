"""A yard in which policies and fleets are changed while it runs."""

from memory_log import MemoryLog
from stream_cases import FLEET, POLICY, Yard, make_router

from policies import Fleet, Policy, parse_fleet, parse_policy
from streams.batcher.stage import Batcher
from streams.config.active_policy import ActivePolicy, DecisionContext
from streams.config.declarations import Declarations
from streams.config.token_counting import TokenCounter
from streams.engine.transactor import Transactor
from streams.router.stage import Router


def policy(text: str = POLICY) -> Policy:
    return parse_policy(text, "policy of the tests")


def fleet(text: str = FLEET) -> Fleet:
    return parse_fleet(text, "fleet of the tests")


class Office:
    """A yard whose router process can be given other terms."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.active_policy = ActivePolicy(
            DecisionContext(yard.situation(), yard.evidence_writer(), TokenCounter({}))
        )

    def change(
        self, *, to_fleet: str = FLEET, to_policy: str = POLICY, shadow: str | None = None
    ) -> None:
        beside = None if shadow is None else policy(shadow)
        self.active_policy.change(Declarations(fleet(to_fleet), policy(to_policy), beside))

    async def router(self) -> tuple[Router, Transactor]:
        router = make_router(self.yard)
        router.take_context(self.active_policy.terms)
        keep = self.active_policy.keep(router.take_context)
        return router, await self.yard.run(router, MemoryLog(self.yard.cluster), before_step=keep)

    async def batcher(
        self, log: MemoryLog | None = None, payload_bytes_max: int = 1_000_000
    ) -> Transactor:
        batcher = Batcher(
            self.active_policy.situation,
            self.active_policy.terms.evidence_writer,
            *(self.yard.clock, self.yard.telemetry, self.yard.cancellations),
            held_records_max=1000,
            held_payload_bytes_max=payload_bytes_max,
        )
        keep = self.active_policy.keep(batcher.take_context)
        self.yard.cluster.members.clear()
        return await self.yard.run(batcher, log, before_step=keep)
