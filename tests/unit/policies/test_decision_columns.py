"""Columns kept from decision to decision change none, and their evidence is that of records."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import orjson
import pytest
from evidence_cases import is_canonical, with_inputs
from policy_cases import NOW, a_situation, bulk, profile, status

from policies import Decision, FleetView, Inputs, Options, Placer, decide, decided_tags
from policies.placement.inputs import LiveInputs
from policies.scoring.candidates import Candidates
from topics import Evidence, Profile, Source, decode
from topics.records.evidence_bytes import evidence_bytes


def profiles(random: Random) -> Iterator[Profile]:
    """Yield requests of all kinds, one after the other."""
    for number in range(120):
        kind = random.choice((profile, bulk))
        wishes = random.choice(
            (
                {},
                {},
                {"regions": ("eu-west",)},
                {"max_cost_usd": 1e-4},
                {"exclude_pools": ("premium",)},
                {"model": "unheard-of"},
                {"session": "s"},
                {"input_tokens": random.randint(1, 40_000)},
            )
        )
        yield kind(id=f"r-{number}", output_tokens=random.randint(1, 900), **wishes)


def anew(inputs: Inputs, view: FleetView) -> Inputs:
    """Return inputs as a replay has them: nothing of them was kept."""
    loads = {pool: view.load(pool).copied() for pool in inputs.loads}
    return Inputs(loads, inputs.arrivals_per_s, inputs.credit)


def evidence(decision: Decision, inputs: Inputs, of: Profile, options: Options) -> Evidence:
    return Evidence(
        request_id=of.id,
        step="placed" if decision.option else "held",
        at=NOW,
        writer="router/a",
        source=Source("inference.requests", 0, 1),
        tenant=of.tenant,
        task=of.task,
        model=of.model,
        tags=decided_tags(of, decision, options, NOW),
        profile=of if of.session is None else replace(of, session=None),
        inputs=inputs,
        candidates=decision.candidates,  # type: ignore[arg-type]
        promised=decision.promised,
        reason=decision.reason,
    )


@pytest.mark.parametrize("seed", range(8))
def test_kept_standings_and_rows_are_those_made_anew(seed: int) -> None:
    random, here = Random(seed), a_situation()
    placer, is_live = Placer(here), False
    for each in profiles(random):
        if random.random() < 0.2:
            pool = random.choice(list(here.options.by_pool))
            load = {"running": random.randint(0, 300), "backlog_s": random.random()}
            here.view.report(status(pool, **load))
        decision, inputs = placer.decide(each, NOW)
        is_live = is_live or isinstance(inputs, LiveInputs)
        fresh = anew(inputs, here.view)
        again = decide(each, fresh, here.options, here.policy, NOW)
        assert again == decision
        kept = evidence_bytes(evidence(decision, inputs, each, here.options))
        records = tuple(again.candidates)
        told = evidence(replace(again, candidates=records), fresh, each, here.options)
        assert is_canonical(kept)
        assert with_inputs(decode(Evidence, kept)) == with_inputs(
            decode(Evidence, evidence_bytes(told))
        )
        if records:
            assert "candidates" not in orjson.loads(kept)
        if decision.option is not None:
            placer.count_placed(each, decision, NOW)
    assert is_live


def test_the_first_candidate_is_the_choice_and_the_others_follow() -> None:
    here = a_situation()
    found = Placer(here).decide(profile(), NOW).decision.candidates
    first, records = found[0], tuple(found)
    assert (first, len(found)) == (records[0], len(records))
    assert found == records


def test_what_is_refused_and_what_would_go_at_once_needs_no_records() -> None:
    here = a_situation()
    some = bulk(regions=("eu-west",))
    found = Placer(here).decide(some, NOW).decision.candidates
    assert isinstance(found, Candidates)
    assert list(found.refusals()) == [(c.pool, c.refused) for c in found if c.refused]
    costs_usd = [(c.pool, c.cost_usd) for c in found if c.path == "direct" and not c.refused]
    assert sorted(found.direct_costs()) == sorted(costs_usd)
