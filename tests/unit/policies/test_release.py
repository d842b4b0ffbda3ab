"""The release: where a held group goes, decided when it goes."""

from dataclasses import replace
from typing import Any

import pytest
from decisions import decide_in, group_there, target_in
from policy_cases import (
    NOW,
    POLICY,
    TWINS,
    a_policy,
    a_situation,
    bulk,
    nobody_lives,
    profile,
    some_options,
    status,
)
from release_cases import BUCKETS, batch, members, target_of

from policies import (
    Release,
    ReleaseInputs,
    release_again,
    release_inputs_of,
    situation,
    windows_of,
)
from policies.batching.groups import group_of
from policies.placement.shadow import release_beside
from policies.scoring.estimate import estimate
from topics import Profile, QualityCheck, VariantStatus, decode
from topics.wire.canonical_json import canonical

JUDGED = QualityCheck(
    *("bulk", "llama-bf16", "exact", 0.1, 30.0, 3600.0),
    pool="board",
    variant="llama-int8",
    of="r0",
    asked="judged",
)


def test_the_cheapest_pool_that_is_in_time_takes_the_batch() -> None:
    target = target_of(batch(20), a_situation())
    assert (target.option.pool, target.path) == ("board", "batch")
    assert target.estimate.cost_usd == min(c.cost_usd or 0 for c in target.candidates)
    assert len(target.candidates) == 4
    assert target.candidates[0].pool == "board"


def test_a_deadline_that_is_near_takes_a_faster_pool() -> None:
    held = batch(20)
    held[7] = replace(held[7], profile=replace(held[7].profile, deadline=NOW + 2))
    target = target_of(held, a_situation())
    assert target.option.pool != "board"
    assert target.chance >= 0.9


def test_the_best_chance_where_nothing_is_in_time() -> None:
    target = target_of(batch(20, deadline=NOW + 0.3), a_situation())
    assert target.chance < 0.9
    assert target.chance == max(c.chance or 0 for c in target.candidates)


def test_load_is_that_of_the_moment() -> None:
    where = a_situation()
    assert target_of(batch(20), where).option.pool == "board"
    where.view.report(status("board", backlog_s=5000.0))
    assert target_of(batch(20), where).option.pool != "board"


def test_nothing_alive_no_target() -> None:
    assert target_in(batch(3), nobody_lives(), NOW) is None
    assert target_in(members(profile()), nobody_lives(), NOW) is None
    assert target_in(batch(3, regions=("us-east",)), a_situation("board"), NOW) is None
    assert target_in(batch(3, model="nobody"), a_situation(), NOW) is None


def test_a_limit_of_cost_holds_at_the_release_too() -> None:
    where = a_situation("premium")
    full = target_of(batch(32), where).estimate.cost_usd
    assert target_of(batch(32, max_cost_usd=full * 1.01), where).estimate.cost_usd <= full
    assert target_in(batch(1, max_cost_usd=full * 1.01), where, NOW) is None


def test_a_limit_of_cost_holds_for_the_dearest_member_and_not_only_the_longest() -> None:
    where = a_situation("premium")
    option = where.options.of("premium", "llama-fp8")
    reads, writes = bulk(id="reads", input_tokens=500, output_tokens=1), bulk(
        id="writes", input_tokens=10, output_tokens=400
    )  # fmt: skip

    def cost_usd(request: Profile) -> float:
        standing = where.view.standing(option)
        return estimate(request, standing, transport_s=0, members=2).cost_usd

    limit_usd = (cost_usd(reads) + cost_usd(writes)) / 2
    assert cost_usd(reads) < limit_usd < cost_usd(writes)
    held = members(*(replace(each, max_cost_usd=limit_usd) for each in (reads, writes)))
    assert held[0].group == held[1].group
    # No batch of the two; the first goes alone, and the second can't go at all.
    assert (target_of(held, where).path, target_of(held, where).asked) == ("direct", 1)
    assert target_of(held[:1], where).path == "batch"
    assert target_in(held[::-1], where, NOW) is None


def test_no_member_is_promised_more_than_its_limit_of_cost() -> None:
    where = a_situation("premium")
    reads, writes = bulk(id="reads", input_tokens=500, output_tokens=1), bulk(
        id="writes", input_tokens=10, output_tokens=400
    )  # fmt: skip
    standing = where.view.standing(where.options.of("premium", "llama-fp8"))
    own_usd = [
        estimate(each, standing, transport_s=0, members=2).cost_usd for each in (reads, writes)
    ]
    limit_usd = 1.001 * max(own_usd)
    held = members(*(replace(each, max_cost_usd=limit_usd) for each in (reads, writes)))
    target = target_of(held, where)
    assert (target.path, target.asked) == ("batch", 2)
    # The longest prompt with the longest reply, which is neither's.
    assert target.estimate.cost_usd > limit_usd
    promised = [target.promise(each.profile, NOW).cost_usd for each in held]
    assert promised == [limit_usd, limit_usd]
    assert all(usd < limit_usd for usd in own_usd)
    assert target.promise(reads, NOW).cost_usd == target.estimate.cost_usd
    assert release_beside(held, where, NOW).cost_usd == limit_usd


def test_a_tier_is_charged_once_for_what_goes_in_a_batch() -> None:
    where = a_situation("board")
    plain, dear = (target_of(batch(8, price_factor=factor), where) for factor in (1.0, 2.0))
    assert dear.estimate == plain.estimate
    promised = dear.promise(bulk(price_factor=2.0), NOW)
    assert promised.cost_usd == 2.0 * plain.estimate.cost_usd
    limit_usd = 1.5 * plain.estimate.cost_usd
    assert target_in(batch(8, max_cost_usd=limit_usd), where, NOW) is not None
    assert target_in(batch(8, max_cost_usd=limit_usd, price_factor=2.0), where, NOW) is None


def test_what_has_drifted_meanwhile_gets_no_batch_of_a_class_that_minds() -> None:
    where = a_situation(
        policy=POLICY.replace("  embedding: {", "  embedding: {minds_drift: false, ")
    )
    where.view.judged({"board": frozenset({"llama-int8"})})
    assert target_of(batch(20), where).option.pool != "board"
    assert target_of(batch(20, task="embedding"), where).option.pool == "board"
    minding, other = (group_there(bulk(task=each), where) for each in ("bulk", "embedding"))
    assert minding != other


def test_the_longest_member_tells_what_fits() -> None:
    where = a_situation()
    too_long = bulk(id="long", output_tokens=40_000)
    assert target_of(members(bulk(), too_long), where).path == "direct"
    assert target_in(members(too_long, bulk()), where, NOW) is None


def test_what_goes_direct_is_promised_what_it_takes_itself() -> None:
    where = a_situation("premium")
    urgent, long = (
        bulk(id="urgent", batchable=False, deadline=NOW + 60),
        bulk(id="long", batchable=False, output_tokens=3000),
    )
    assert target_of(members(urgent, long), where) == target_of(members(urgent), where)


def test_the_longest_reply_tells_how_long_a_batch_takes() -> None:
    where = a_situation("premium")
    reads = bulk(id="reads", input_tokens=500, output_tokens=1)
    writes = bulk(id="writes", input_tokens=10, output_tokens=400)
    both = target_of(members(reads, writes), where)
    alone = target_of(members(writes), where)
    assert both.estimate.finish_s >= alone.estimate.finish_s


def test_a_failure_makes_a_pool_dearer_at_the_release_too() -> None:
    text = TWINS.replace("  right:", "    failure_rate: 0.01\n  right:")
    where = situation(some_options(text), a_policy())
    for name in ("left", "right"):
        where.view.report(status(name))
    assert target_of(batch(3), where).option.pool == "right"
    assert target_of(batch(3), a_situation(fleet=TWINS)).option.pool == "left"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [((300, 200), 32), ((2000, 30_000), 11), ((30_000, 2_000), 11)],
)
def test_a_batch_is_as_large_as_policy_device_and_memory_allow(
    tokens: tuple[int, int], expected: int
) -> None:
    where = a_situation("premium")
    held = batch(40, input_tokens=tokens[0], output_tokens=tokens[1])
    target = target_of(held, where)
    assert target.members_max == expected
    assert target.tokens_max == 366_210
    assert expected == min(32, 366_210 // sum(tokens))


def test_the_device_limits_a_batch_that_the_policy_would_not() -> None:
    policy = POLICY.replace("members_max: 32", "members_max: 500")
    where = a_situation("silicon", policy=policy)
    assert target_of(batch(100), where).members_max == 64


def test_a_larger_batch_is_cheaper_for_each_and_slower_for_all() -> None:
    where = a_situation("board")
    few, many = (target_of(batch(size), where).estimate for size in (2, 30))
    assert many.cost_usd < few.cost_usd
    assert many.finish_s > few.finish_s


def test_what_waited_for_a_pool_goes_alone_and_direct() -> None:
    held = members(profile(id="a"), profile(id="b"))
    target = target_of(held, a_situation())
    assert (target.path, target.members_max) == ("direct", 1)
    assert "direct" in target.option.lanes
    assert {c.path for c in target.candidates} == {"direct"}
    assert target_in(held, a_situation("board"), NOW) is None


def test_work_that_may_wait_goes_direct_where_no_pool_takes_batches() -> None:
    direct_only = TWINS.replace("    region", "    lanes: [direct]\n    region")
    where = situation(some_options(direct_only), a_policy())
    # Held, because nothing lived; and released when something does, whatever its lanes.
    assert decide_in(bulk(), where, NOW).action == "hold"
    assert target_in(batch(3), where, NOW) is None
    where.view.report(status("right"))
    target = target_of(batch(3), where)
    assert (target.option.pool, target.path, target.members_max) == ("right", "direct", 1)


def test_a_pool_that_takes_batches_is_preferred_for_them() -> None:
    cheap = "    lanes: [direct]\n    usd_per_hour: 0.1\n    region"
    where = a_situation(fleet=TWINS.replace("    region", cheap, 1))
    target = target_of(batch(1), where)
    assert (target.option.pool, target.path) == ("right", "batch")


def test_a_promise_counts_from_each_members_own_time() -> None:
    target = target_of(batch(3), a_situation(), NOW + 10)
    old, new = (target.promise(bulk(created_at=NOW + s), NOW + 10) for s in (0, 9))
    assert old.finish_s == pytest.approx(10 + target.estimate.finish_s)
    assert new.finish_s == pytest.approx(1 + target.estimate.finish_s)
    assert (old.ttft_s or 0) - (new.ttft_s or 0) == pytest.approx(9)
    assert (old.cost_usd, old.chance) == (target.estimate.cost_usd, target.chance)


def test_the_waits_of_the_most_urgent_member_count() -> None:
    where = a_situation("board")
    where.view.report(status("board", variants={"llama-int8": VariantStatus(running=10)}))
    calm = target_of(batch(5), where)
    held = batch(5)
    held[4] = replace(held[4], profile=replace(held[4].profile, deadline=NOW + 5))
    assert target_of(held, where).chance < calm.chance


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"operation": "completions"},
        {"regions": ("eu-west",)},
        {"regions": ("us-east",)},
        {"precisions": ("fp8",)},
        {"pools": ("board",)},
        {"exclude_pools": ("board",)},
        {"labels": {"cooling": "air"}},
        {"labels": {"cooling": "liquid"}},
        {"max_cost_usd": 0.5},
        {"max_cost_usd": 0.0},
        {"input_tokens": 513},
        {"input_tokens": 2049},
        {"batchable": False},
        {"counts_energy": True},
        {"quality": JUDGED},
    ],
)
def test_groups_keep_apart_what_must_not_mix(change: dict[str, Any]) -> None:
    assert group_of(bulk(**change), BUCKETS) != group_of(bulk(), BUCKETS)


def test_second_runs_that_ask_different_variants_share_no_group() -> None:
    asked = [
        JUDGED,
        replace(JUDGED, variant="llama-fp8"),
        replace(JUDGED, pool="silicon"),
        replace(JUDGED, asked="reference"),
        replace(JUDGED, asked="reference", reference_pool="premium"),
    ]
    assert len({group_of(bulk(quality=each), BUCKETS) for each in asked}) == len(asked)


def test_what_is_charged_differently_shares_no_group_where_its_cost_is_limited() -> None:
    def group(**change: Any) -> str:
        return group_of(bulk(**change), BUCKETS)

    assert group(max_cost_usd=1.0, price_factor=2.0) != group(max_cost_usd=1.0)
    assert group(price_factor=2.0) == group()


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"tenant": "other"},
        {"deadline": NOW + 1},
        {"output_tokens": 1},
        {"input_tokens": 512},
        {"input_tokens": 0},
        {"created_at": NOW - 5},
        {"session": "s"},
    ],
)
def test_groups_keep_nothing_else_apart(change: dict[str, Any]) -> None:
    assert group_of(bulk(**change), BUCKETS) == group_of(bulk(), BUCKETS)


def test_constraints_of_different_fields_make_different_groups() -> None:
    values = ("a",)
    fields = ("regions", "precisions", "pools", "exclude_pools")
    groups = {group_of(bulk(**{field: values}), BUCKETS) for field in fields}
    assert len(groups) == len(fields)
    two = group_of(bulk(labels={"a": "1", "b": "2"}), BUCKETS)
    assert two == group_of(bulk(labels={"b": "2", "a": "1"}), BUCKETS)


def test_a_batch_goes_early_where_its_pool_is_idle_and_nobody_is_expected() -> None:
    where, now = a_situation(), NOW + 10
    waiting = batch(3)
    group = waiting[0].group
    # Seen once, long ago: another within the twenty seconds left is not to be expected.
    where.arrivals.observe(group, NOW - 200)
    windows = windows_of(where.policy)
    found = target_of(waiting, where, now)
    release = windows.judge(waiting, 3, found, now)
    assert isinstance(release, Release)
    assert release.reason == "idle"
    inputs = decode(ReleaseInputs, canonical(release_inputs_of(release, where)))
    again = release_again(waiting[0].profile, inputs, where.options, where.policy, now)
    assert again is not None
    assert (again.reason, again.target.candidates) == ("idle", found.candidates)


def test_it_waits_while_others_are_expected_or_the_pool_has_work() -> None:
    waiting, now = batch(3), NOW + 10
    where = a_situation()
    for n in range(60):
        where.arrivals.observe(waiting[0].group, NOW - n / 10)
    windows = windows_of(where.policy)
    assert isinstance(windows.judge(waiting, 3, target_of(waiting, where, now), now), float)
    busy = a_situation("board")
    variants = {"llama-int8": VariantStatus(running=5)}
    busy.view.report(status("board", variants=variants))
    busy.arrivals.observe(waiting[0].group, NOW - 200)
    found = target_of(waiting, busy, now)
    assert found.idle_arrivals_per_s is None
    assert isinstance(windows.judge(waiting, 3, found, now), float)
