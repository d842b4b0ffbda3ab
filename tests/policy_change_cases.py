"""A yard in which policies and fleets are changed while it runs."""

from memory_log import MemoryLog
from stream_cases import FLEET, POLICY, Yard, make_router

from policies import Fleet, Policy, parse_fleet, parse_policy
from streams import Batcher, InForce, Router, Terms, Transactor
from streams.declarations import Declarations
from streams.tokens import TokenCounter


def policy(text: str = POLICY) -> Policy:
    return parse_policy(text, "policy of the tests")


def fleet(text: str = FLEET) -> Fleet:
    return parse_fleet(text, "fleet of the tests")


class Office:
    """A yard whose router process can be given other terms."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.in_force = InForce(Terms(yard.situation(), yard.scribe(), TokenCounter({})))

    def change(
        self, *, to_fleet: str = FLEET, to_policy: str = POLICY, shadow: str | None = None
    ) -> None:
        beside = None if shadow is None else policy(shadow)
        self.in_force.change(Declarations(fleet(to_fleet), policy(to_policy), beside))

    async def router(self) -> tuple[Router, Transactor]:
        router = make_router(self.yard)
        router.take_terms(self.in_force.terms)
        keep = self.in_force.keep(router.take_terms)
        return router, await self.yard.run(router, MemoryLog(self.yard.cluster), before_step=keep)

    async def batcher(
        self, log: MemoryLog | None = None, payload_bytes_max: int = 1_000_000
    ) -> Transactor:
        batcher = Batcher(
            self.in_force.situation,
            self.in_force.terms.scribe,
            *(self.yard.clock, self.yard.telemetry, self.yard.cancellations),
            held_records_max=1000,
            held_payload_bytes_max=payload_bytes_max,
        )
        keep = self.in_force.keep(batcher.take_terms)
        self.yard.cluster.members.clear()
        return await self.yard.run(batcher, log, before_step=keep)
