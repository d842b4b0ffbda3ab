"""Requests of bound tenants and keys, through router, hold and reroutes, on the log in memory."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hold_cases import hold
from policy_change_cases import Office, policy
from stream_cases import POLICY, START, Yard, drain, make_profile, request

from shunter.audit.replay import replay_steps
from streams.engine.log import Outgoing
from streams.router.stage import Router
from topics import Fallback, encode
from topics.records import headers as h
from topics.records.key_proof import key_headers, proven_key

SECRET = "between gateways and routers"  # noqa: S105 - of these tests
BOUND = (
    POLICY
    + """
tenants:
  acme: {bound: {regions: [eu-west]}}
  vault: {needs_key: true}
keys:
  k1: {tenant: vault, bound: {pools: [premium-us]}}
"""
)
US = POLICY + "tenants: {acme: {bound: {regions: [us-east]}}}\n"


async def routed(yard: Yard, text: str = BOUND, secret: str | None = SECRET) -> Router:
    office = Office(yard)
    router = Router(
        yard.situation(),
        yard.evidence_writer(),
        yard.clock,
        yard.telemetry,
        request_bytes_max=yard.settings.request_bytes_max,
        duplicate_window_records=yard.settings.duplicate_window_records,
        key_secret=secret,
    )
    office.change(to_policy=text)
    router.take_context(office.active_policy.terms)
    await drain(await yard.run(router))
    return router


def proof(request_id: str, tenant: str, key: str = "k1") -> list[tuple[str, bytes]]:
    return list(key_headers(SECRET.encode(), key, request_id, tenant).items())


def ends(yard: Yard) -> dict[str, str]:
    return {name: result.error.code for name, result in yard.results().items() if result.error}


async def test_a_bound_tenant_stays_where_it_may_whatever_it_says() -> None:
    yard = Yard()
    yard.publish(id="plain", tenant="acme")
    yard.publish(id="wide", tenant="acme", constraints={"regions": ["us-east", "eu-west"]})
    yard.publish(id="away", tenant="acme", constraints={"regions": ["us-east"]})
    yard.publish(id="free", tenant="other", constraints={"regions": ["us-east"]})
    await routed(yard)
    placed = {e.request_id: e for e in yard.evidence("placed")}
    regions = {name: e.placement.region for name, e in placed.items() if e.placement}
    assert regions == {"plain": "eu-west", "wide": "eu-west", "free": "us-east"}
    profiles = {name: e.profile for name, e in placed.items()}
    assert profiles["wide"] is not None
    assert profiles["free"] is not None
    assert profiles["wide"].bound_by == ("tenants.acme",)
    assert profiles["free"].bound_by == ()
    assert ends(yard) == {"away": "outside_bound"}
    (rejected,) = yard.evidence("rejected")
    assert "tenants.acme" in (rejected.message or "")
    found = replay_steps([*placed.values()], lambda *_: (yard.options, policy(BOUND)))
    assert not [each for each in found if each.differences]


async def test_a_key_counts_only_with_the_proof_of_a_gateway() -> None:
    yard = Yard()
    forged = [(h.KEY, b"k1"), (h.KEY_PROOF, b"0" * 64)]
    yard.publish(id="good", tenant="vault", headers=proof("good", "vault"))
    yard.publish(id="none", tenant="vault")
    yard.publish(id="forged", tenant="vault", headers=forged)
    yard.publish(id="copied", tenant="vault", headers=proof("good", "vault"))
    yard.publish(id="lent", tenant="acme", headers=proof("lent", "acme"))
    await routed(yard)
    (good,) = yard.evidence("placed")
    assert good.request_id == "good"
    assert good.placement is not None
    assert good.placement.pool == "premium-us"
    assert good.profile is not None
    assert (good.profile.key, good.profile.bound_by) == ("k1", ("keys.k1",))
    assert ends(yard) == {
        "none": "key_required",
        "forged": "key_required",
        "copied": "key_required",
        "lent": "key_of_another_tenant",
    }
    (record,) = yard.lane("premium-us", "direct")
    assert h.find(record.headers, h.KEY_PROOF) is None


async def test_without_the_secret_no_key_is_ever_proven() -> None:
    yard = Yard()
    yard.publish(id="good", tenant="vault", headers=proof("good", "vault"))
    await routed(yard, secret=None)
    assert ends(yard) == {"good": "key_required"}


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(h.KEY, b"k1")],
        [(h.KEY, b"\xff"), (h.KEY_PROOF, b"0")],
        [(h.KEY, None), (h.KEY_PROOF, None)],
        [(h.KEY, b"k" * 129), (h.KEY_PROOF, b"0")],
        proof("r2", "a"),
        proof("r1", "b"),
        [*proof("r1", "a", "k2")[1:], (h.KEY, b"k1")],
    ],
)
def test_what_proves_no_key(headers: Any) -> None:
    assert proven_key(headers, SECRET.encode(), "r1", "a") is None
    assert proven_key(proof("r1", "a"), SECRET.encode(), "r1", "a") == "k1"
    assert proven_key(proof("r1", "a"), b"another", "r1", "a") is None


async def test_what_is_held_goes_where_the_policy_in_force_lets_it() -> None:
    yard = Yard()
    hold(yard, "free", held_at=START, tenant="acme")
    hold(yard, "away", held_at=START, tenant="acme", constraints={"regions": ["us-east"]})
    hold(yard, "other", held_at=START, tenant="other")
    office = Office(yard)
    transactor = await office.batcher()
    await transactor.step()
    assert not yard.evidence("released")
    office.change(to_policy=BOUND)
    yard.clock.at += 60
    await drain(transactor)
    placed = {e.request_id: e.placement for e in yard.evidence("released")}
    assert placed.keys() == {"free", "other"}
    assert placed["free"] is not None
    assert placed["free"].region == "eu-west"
    assert ends(yard) == {"away": "outside_bound"}
    decided = [e for e in yard.evidence("released") if e.profile is not None]
    bounds = {e.request_id: e.profile.bound_by for e in decided if e.profile}
    assert bounds["free"] == ("tenants.acme",)
    found = replay_steps(decided, lambda *_: (yard.options, policy(BOUND)))
    assert not [each for each in found if each.differences]


async def test_another_try_is_bound_by_the_policy_in_force() -> None:
    yard = Yard()
    tried = {
        "attempt": 2,
        "exclude_pools": ("premium-us",),
        "fallbacks": (Fallback("premium-us", "bad_answer"),),
    }
    for name in ("again", "stays"):
        tenant = "acme" if name == "again" else "other"
        fields = request(id=name, tenant=tenant)
        first = make_profile(yard.policy, **fields)
        headers = [(h.PROFILE, encode(replace(first, **tried)))]
        yard.cluster.publish(
            Outgoing(yard.catalogue.reroutes, name.encode(), orjson.dumps(fields), headers, 0)
        )
    await routed(yard, US)
    assert {e.request_id: e.step for e in yard.evidence()} == {"again": "failed", "stays": "placed"}
