"""The request that an ``Idempotency-Key`` stands for, by the claims of all gateways."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.api.runs import Key, run_of
from gateway.exchange.claims import TOGETHER_S, ClaimFollower, HeldKey
from streams.engine.log import Partition, Record
from topics import KeyClaim, Settings, decode


class Claims:
    """The claims of one key, which a day's retention may take away."""

    def __init__(self) -> None:
        self.held: HeldKey | None = None

    def find(self, _name: str) -> HeldKey | None:
        return self.held

    async def seen(self, _name: str, _run: int) -> HeldKey:
        assert self.held is not None
        return self.held

    async def send(self, _topic: str, _name: str, value: bytes) -> None:
        claim = decode(KeyClaim, value)
        if self.held is None or claim.run > self.held.claim.run:
            self.held = HeldKey(claim, claim.at, claim.run)


async def test_a_key_whose_claims_are_gone_is_run_under_another_id() -> None:
    """Under the old one it would be a duplicate, to which nothing is answered."""
    claims, now = Claims(), 1.8e9

    async def no_result(*_: Any, **__: Any) -> None:
        return None

    catalogue = SimpleNamespace(claims="claims")
    exchange = SimpleNamespace(catalogue=catalogue, send=claims.send, result=no_result)
    clock = SimpleNamespace(now=lambda: now)
    gateway: Any = SimpleNamespace(claims=claims, exchange=exchange, clock=clock)
    key, wanted = Key("acme", "/", "k"), SimpleNamespace(digest="d")
    first = await run_of(gateway, key, wanted)
    now += 86_000
    again = await run_of(gateway, key, wanted)
    assert (first.is_joined, again.is_joined) == (False, True)
    assert first.request_id == again.request_id
    now += 4000
    claims.held = None
    anew = await run_of(gateway, key, wanted)
    assert not anew.is_joined
    assert anew.request_id != first.request_id


@pytest.mark.parametrize("later_s", [0.02, TOGETHER_S + 1])
async def test_gateways_that_claim_a_key_at_once_run_it_once_though_an_hour_begins(
    later_s: float,
) -> None:
    """One that asks later has not read the claim since it is gone, with what it was for."""
    at = 1.8e9 // 3600 * 3600 - 0.01
    followers = [ClaimFollower(Settings()) for _ in range(2)]
    is_written = asyncio.Event()

    def gateway(number: int) -> Any:
        async def send(topic: str, name: str, value: bytes) -> None:
            if number:
                await is_written.wait()
            record = Record(Partition(topic, 0), 0, name.encode(), value, (), 0)
            for follower in followers:
                follower.take(record)

        async def no_result(*_: Any, **__: Any) -> None:
            return None

        catalogue = SimpleNamespace(claims="claims")
        return SimpleNamespace(
            claims=followers[number],
            exchange=SimpleNamespace(catalogue=catalogue, send=send, result=no_result),
            clock=SimpleNamespace(now=lambda: at + number * later_s),
        )

    key, wanted = Key("acme", "/", "k"), SimpleNamespace(digest="d")
    second = asyncio.create_task(run_of(gateway(1), key, wanted))
    await asyncio.sleep(0)
    found = [await run_of(gateway(0), key, wanted)]
    is_written.set()
    found.append(await second)
    is_one = later_s < TOGETHER_S
    assert (found[0].request_id == found[1].request_id) == is_one
    assert [each.is_joined for each in found] == [False, is_one]
