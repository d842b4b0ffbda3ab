"""Which replica of a pool serves: work gathers where every SLO on it still holds."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf

import pytest
from stream_cases import make_policy, make_profile

from policies.hardware.accelerator import VariantLimits
from policies.hardware.chunks import PREFILL_CHUNK_TOKENS
from policies.hardware.iteration import Job
from policies.hardware.pool_fill import FULL
from policies.hardware.prefix_cache import PrefixCache
from policies.hardware.prompts import DUE_SHARE
from policies.hardware.replica import (
    PREFILL_MEMORY_S,
    TPOT_SHARE,
    USUAL,
    Ask,
    FillLimits,
    Replica,
    due_left_s,
)
from policies.hardware.replica_choice import LESS_ROOM, choose_replica
from policies.hardware.roofline import Roofline

ROOFLINE = Roofline(
    weights_bytes=16e9,
    active_weights_bytes=16e9,
    active_parameters=8e9,
    kv_bytes_per_token=131072,
    layers=32,
    attention_width=4096,
    flops=1e15,
    bandwidth_bytes_per_s=3e12,
    memory_bytes=80e9,
    compute_efficiency=0.6,
    bandwidth_efficiency=0.6,
    step_overhead_s=1e-4,
)
VARIANTS = {name: VariantLimits(ROOFLINE, max_batch=4) for name in ("one", "two")}
STEP_S = ROOFLINE.step_s(1, 500)
CHUNK_S = ROOFLINE.prefill_s(PREFILL_CHUNK_TOKENS)


def pool(replicas: int = 3) -> list[Replica]:
    return [Replica(VARIANTS) for _ in range(replicas)]


def give(replica: Replica, variant: str = "one", count: int = 1, tokens: int = 500) -> None:
    """Let a replica decode some long replies from second 1 on."""
    for _ in range(count):
        name = f"{variant}-{replica.jobs}"
        replica.submit(Job(name, variant, tokens, 50_000), 0.0)
    replica.advance(1.0)


def ask(variant: str = "one", tokens: int = 500, **limits: float) -> Ask:
    return Ask(variant, tokens, 100, **limits)


def test_an_idle_pool_begins_with_its_first_replica() -> None:
    assert choose_replica(pool(), ask(), 1.0) == 0


def test_work_joins_what_decodes_the_same_variant_then_what_is_busy() -> None:
    replicas = pool()
    give(replicas[1], "two")
    give(replicas[2], "one")
    assert choose_replica(replicas, ask("one"), 1.0) == 2
    assert choose_replica(replicas, ask("two"), 1.0) == 1
    replicas = pool()
    give(replicas[1], "two")
    assert choose_replica(replicas, ask("one"), 1.0) == 1


def test_the_fullest_that_has_a_place_is_joined() -> None:
    replicas = pool()
    give(replicas[0], count=1)
    give(replicas[1], count=3)
    give(replicas[2], count=4)
    assert choose_replica(replicas, ask(), 1.0) == 1


def test_a_variant_that_fills_a_replica_gets_an_idle_one_before_a_mixed_one() -> None:
    replicas = pool()
    give(replicas[0], "one", count=4)
    give(replicas[1], "two", count=2)
    assert choose_replica(replicas, ask("one"), 1.0) == 2


def test_nobody_joins_where_a_step_would_break_a_tpot() -> None:
    replicas = pool()
    give(replicas[0], "two")
    # Two variants take turns: each token waits for two steps.
    assert choose_replica(replicas, ask(tpot_s=10 * STEP_S), 1.0) == 0
    assert choose_replica(replicas, ask(tpot_s=2 * STEP_S), 1.0) == 1
    replicas = pool()
    replicas[0].submit(Job("urgent", "two", 500, 50_000, tpot_s=2 * STEP_S), 0.0)
    replicas[0].advance(1.0)
    assert choose_replica(replicas, ask(), 1.0) == 1


def test_nobody_joins_behind_prompts_that_take_the_ttft() -> None:
    replicas = pool()
    replicas[0].submit(Job("long", "two", 100_000, 10), 1.0)
    assert choose_replica(replicas, ask(), 1.0) == 0
    assert choose_replica(replicas, ask(ttft_left_s=60.0), 1.0) == 0
    assert choose_replica(replicas, ask(tokens=40_000, ttft_left_s=2.0), 1.0) == 1


def test_nobody_joins_where_the_kv_cache_would_not_fit() -> None:
    replicas = pool()
    give(replicas[0], tokens=100_000)
    assert choose_replica(replicas, ask(tokens=200_000), 1.0) == 1


def test_a_device_busy_with_prompts_takes_no_more_decoding_until_they_are_past() -> None:
    replicas = pool(2)
    tokens = 2_000
    count = int(0.9 * PREFILL_MEMORY_S / ROOFLINE.prefill_s(tokens))
    for index in range(count):
        replicas[0].submit(Job(str(index), "one", tokens, 1), 0.0)
    tpot_s = 0.5 * CHUNK_S
    replicas[0].submit(Job("running", "one", 100, 200_000, tpot_s=tpot_s), 0.0)
    replicas[0].advance(PREFILL_MEMORY_S)
    assert choose_replica(replicas, ask(tpot_s=tpot_s), PREFILL_MEMORY_S) == 1
    later = 2.5 * PREFILL_MEMORY_S
    replicas[0].advance(later)
    assert choose_replica(replicas, ask(tpot_s=tpot_s), later) == 0


def test_prompts_that_are_due_later_are_not_ahead_where_what_is_due_first_goes_first() -> None:
    long_s, short_s = ROOFLINE.prefill_s(20_000), ROOFLINE.prefill_s(1_000)
    for by_due in (True, False):
        replica = Replica(VARIANTS, keeps_tpot=by_due)
        assert replica.ahead_s(5.0) == 0.0
        replica.submit(Job("long", "one", 20_000, 1, due_at=20.0), 0.0)
        replica.submit(Job("short", "two", 1_000, 1, due_at=2.0), 0.0)
        assert replica.backlog_s == replica.ahead_s(20.0) == pytest.approx(long_s + short_s)
        few_s = short_s if by_due else long_s + short_s
        assert replica.ahead_s(5.0) == pytest.approx(few_s)
        assert replica.ahead_s(1.0) == pytest.approx(0.0 if by_due else few_s, abs=1e-12)


def test_what_is_due_first_finds_room_while_later_prompts_keep_their_time() -> None:
    asked = ask(tokens=4_000, ttft_left_s=1.0, due_at=1.0)
    total_s = ROOFLINE.prefill_s(40_000) + ROOFLINE.prefill_s(4_000)
    for part, has_room in ((1.02, True), (0.98, False)):
        replica = Replica(VARIANTS, keeps_tpot=True)
        due_at = part * total_s / DUE_SHARE
        replica.submit(Job("long", "one", 40_000, 1, due_at=due_at), 0.0)
        assert due_at > asked.due_at
        assert replica.can_take(asked, 0.0) is has_room
        server = Replica(VARIANTS)
        server.submit(Job("long", "one", 40_000, 1, due_at=due_at), 0.0)
        assert not server.can_take(asked, 0.0), "behind the long one"


def test_a_first_token_is_due_by_its_slo_and_where_that_is_lost_by_the_deadline() -> None:
    profile = replace(make_profile(make_policy()), created_at=10.0, deadline=40.0, ttft_s=2.0)
    assert due_left_s(profile, 11.5) == 0.5
    assert due_left_s(profile, 12.0) == 28.0
    assert due_left_s(replace(profile, ttft_s=None), 11.5) == inf


def test_the_time_of_each_later_prompt_counts_that_of_those_before_it() -> None:
    replica = Replica(VARIANTS, keeps_tpot=True)
    each_s, own_s = ROOFLINE.prefill_s(10_000), ROOFLINE.prefill_s(500)
    replica.submit(Job("sooner", "one", 10_000, 1, due_at=0.05), 0.0)
    for number, spare in enumerate((1.5, 1.02)):
        due_at = spare * ((number + 2) * each_s + own_s) / DUE_SHARE
        replica.submit(Job(str(number), "one", 10_000, 1, due_at=due_at), 0.0)
    asked = ask(ttft_left_s=10.0, due_at=0.1)
    assert replica.can_take(asked, 0.0, FillLimits(0.9, 0.9, 0.9))
    late_s = 0.03 * (3 * each_s + own_s) / DUE_SHARE
    assert not replica.can_take(asked, late_s, FillLimits(0.9, 0.9, 0.9))


def busy_with_prompts(
    running: str = "one",
    variants: Mapping[str, VariantLimits] = VARIANTS,
    share: float = 0.9,
    *,
    keeps_tpot: bool = False,
) -> Replica:
    """Return a replica that decodes, and whose prompts of "one" took a share of its time."""
    replica = Replica(variants, keeps_tpot=keeps_tpot)
    tokens = 2_000
    for index in range(int(share * PREFILL_MEMORY_S / ROOFLINE.prefill_s(tokens))):
        replica.submit(Job(str(index), "one", tokens, 1), 0.0)
    replica.submit(Job("running", running, 100, 200_000), 0.0)
    replica.advance(PREFILL_MEMORY_S)
    return replica


def test_prompts_that_are_due_later_leave_all_of_the_time_to_what_short_chunks_let_in() -> None:
    full = FillLimits(0.95, 0.95, 0.95, ahead_s=0.1)
    replica = busy_with_prompts(keeps_tpot=True)
    asked = ask(tpot_s=0.9 * CHUNK_S, due_at=PREFILL_MEMORY_S + 1.0)
    assert replica.can_take(asked, PREFILL_MEMORY_S, full)
    replica.submit(Job("long", "one", 20_000, 1, due_at=1_000.0), PREFILL_MEMORY_S)
    assert replica.backlog_s > full.ahead_s
    assert replica.can_take(asked, PREFILL_MEMORY_S, full)
    assert not replica.can_take(replace(asked, due_at=2_000.0), PREFILL_MEMORY_S, full)


@pytest.mark.parametrize("limits", [USUAL, FULL])
def test_prompts_may_take_all_the_time_where_a_step_beside_a_whole_chunk_keeps_every_tpot(
    limits: FillLimits,
) -> None:
    replica = busy_with_prompts()
    round_s = replica.accelerator.round_s("one", 500)
    enough_s = (round_s + CHUNK_S) / limits.tpot_share
    assert replica.can_take(ask(tpot_s=1.001 * enough_s), PREFILL_MEMORY_S, limits)
    assert not replica.can_take(ask(tpot_s=0.999 * enough_s), PREFILL_MEMORY_S, limits)


def test_prompts_may_take_more_of_the_time_where_chunks_keep_the_tpot() -> None:
    found = {
        (share, keeps): busy_with_prompts(share=share, keeps_tpot=keeps).can_take(
            ask(tpot_s=1.2 * CHUNK_S), PREFILL_MEMORY_S
        )
        for share in (0.5, 0.7, 0.9)
        for keeps in (False, True)
    }
    assert found == {
        (0.5, False): True,
        (0.7, False): False,
        (0.9, False): False,
        (0.5, True): True,
        (0.7, True): True,
        (0.9, True): False,
    }


def test_the_chunk_is_the_longest_of_the_variants_on_the_replica() -> None:
    slow = replace(ROOFLINE, flops=ROOFLINE.flops / 4)
    variants = {"one": VARIANTS["one"], "two": VariantLimits(slow, max_batch=4)}
    asked = ask("one", tpot_s=3 * CHUNK_S)
    later = 1.1 * PREFILL_MEMORY_S
    for beside, can_take in (("one", True), ("two", False)):
        replica = busy_with_prompts(beside, variants)
        replica.advance(later)
        assert replica.accelerator.has_room("one", 600)
        assert replica.can_take(asked, later) == can_take, beside


def test_where_none_can_the_one_with_the_least_to_do_serves() -> None:
    replicas = pool(2)
    give(replicas[0], count=6)
    give(replicas[1], count=5)
    assert choose_replica(replicas, ask(), 1.0) == 1


def test_where_none_has_the_usual_room_the_fullest_that_keeps_the_slo_is_joined() -> None:
    replicas = pool(2)
    give(replicas[0], "one")
    give(replicas[1], "one", count=2)
    near = ask("one", tpot_s=1.2 * STEP_S)
    assert not any(replica.can_take(near, 1.0) for replica in replicas)
    assert any(replicas[1].can_take(near, 1.0, limits) for limits in LESS_ROOM)
    assert choose_replica(replicas, near, 1.0) == 1, "though the other has less to do"


def test_where_none_can_what_has_the_variant_comes_before_what_has_less_to_do() -> None:
    replicas = pool(2)
    give(replicas[0], "one", count=2)
    give(replicas[1], "two")
    impossible = ask("one", tpot_s=STEP_S / 10)
    assert choose_replica(replicas, impossible, 1.0) == 0
    assert choose_replica(replicas, ask("two", tpot_s=STEP_S / 10), 1.0) == 1


def test_the_backlog_is_the_prompts_without_a_first_token() -> None:
    (replica,) = pool(1)
    assert replica.backlog_s == 0
    replica.submit(Job("a", "one", 1_000, 5), 0.0)
    replica.submit(Job("b", "one", 500, 5), 0.0)
    assert replica.backlog_s == ROOFLINE.prefill_s(1_500)  # one chunk
    replica.submit(Job("c", "two", 6_000, 5), 0.0)
    assert replica.backlog_s == ROOFLINE.prefill_s(1_500) + ROOFLINE.prefill_s(6_000)
    replica.advance(60.0)
    assert replica.backlog_s == 0
    assert replica.accelerator.is_idle


def test_where_none_can_take_it_one_with_a_free_place_comes_first() -> None:
    replicas = pool(2)
    give(replicas[0], "one", count=4)
    give(replicas[1], "one", count=1)
    give(replicas[1], "two", count=4)
    impossible = ask("one", tpot_s=STEP_S / 10)
    assert not any(replica.can_take(impossible, 1.0) for replica in replicas)
    assert replicas[0].jobs < replicas[1].jobs
    assert choose_replica(replicas, impossible, 1.0) == 1


def keeping(replicas: list[Replica], index: int, tokens: int) -> list[Replica]:
    """Let one replica keep a session's tokens; all have caches."""
    found = [Replica(VARIANTS, PrefixCache()) for _ in replicas]
    found[index].keep("one", "s", tokens)
    return found


def test_an_idle_replica_that_keeps_a_long_prefix_comes_before_company() -> None:
    replicas = keeping(pool(), 2, 30_000)
    give(replicas[1], "one")
    long = Ask("one", 30_500, 50, session="s")
    assert choose_replica(replicas, long, 1.0) == 2
    assert choose_replica(replicas, Ask("one", 30_500, 50, session="other"), 1.0) == 1


def test_a_short_prefix_is_worth_less_than_company() -> None:
    replicas = keeping(pool(), 2, 50)
    give(replicas[1], "one")
    assert choose_replica(replicas, Ask("one", 100, 5_000, session="s"), 1.0) == 1


def test_a_replica_that_keeps_the_session_and_can_take_no_more_is_passed_over() -> None:
    replicas = keeping(pool(), 2, 30_000)
    give(replicas[2], "one", count=4)
    assert choose_replica(replicas, Ask("one", 30_500, 50, session="s"), 1.0) != 2


def test_a_session_goes_where_nothing_has_to_give_way_to_it() -> None:
    replicas = [Replica(VARIANTS, PrefixCache()) for _ in range(3)]
    give(replicas[0], "one")
    kept_bytes = replicas[0].accelerator.kv_free_bytes
    tokens = int(kept_bytes / VARIANTS["one"].roofline.kv_bytes_per_token)
    replicas[0].keep("one", "s", tokens)
    new = Ask("one", 10_000, 2, session="new")
    assert choose_replica(replicas, new, 1.0) == 0, "nobody comes again: it may give way"
    prefixes = replicas[0].prefixes
    assert prefixes is not None
    prefixes.used_share = 1.0
    assert choose_replica(replicas, new, 1.0) == 1
    assert choose_replica(replicas, Ask("one", 10_000, 2), 1.0) == 0, "it will leave nothing"
    assert choose_replica(replicas, Ask("one", 10, 5_000, session="t"), 1.0) == 0, "company counts"


def test_what_a_turn_uses_again_takes_no_memory_beside_it() -> None:
    replica = Replica(VARIANTS, PrefixCache())
    roofline = VARIANTS["one"].roofline
    half = int(0.5 * replica.accelerator.kv_free_bytes / roofline.kv_bytes_per_token)
    replica.keep("one", "s", half)
    replica.keep("one", "t", half // 2)
    replica.submit(Job("a", "one", half + 1_000, 10, half), 0.0, "s")
    assert replica.cached_tokens("one", "t") == half // 2
    assert replica.cached_tokens("one", "s") == half
    replica.forget()
    assert replica.cached_tokens("one", "s") == replica.cached_tokens("one", "t") == 0


def test_the_oldest_gives_way_from_its_end_by_blocks() -> None:
    prefixes = PrefixCache()
    prefixes.keep(("old", "one"), 1_000, 1_000.0, 1_500.0)
    prefixes.keep(("new", "one"), 900, 900.0, 1_500.0)
    assert (prefixes.tokens(("old", "one")), prefixes.tokens(("new", "one"))) == (592, 900)
    assert prefixes.kv_bytes == 1_492.0
    prefixes.shrink(880.0)
    assert (prefixes.tokens(("old", "one")), prefixes.tokens(("new", "one"))) == (0, 880)


def test_a_keeper_busy_with_prompts_takes_what_it_keeps() -> None:
    replicas = keeping(pool(), 0, 30_000)
    replica = replicas[0]
    give(replica, "one")
    replica.advance(5.0)
    replica.submit(Job("p", "two", 44_000, 1), 5.0)
    assert 0.6 * PREFILL_MEMORY_S < replica.backlog_s < 0.9 * PREFILL_MEMORY_S
    tpot_s = 0.1
    assert TPOT_SHARE * tpot_s - replica.accelerator.round_s("one", 30_500) < CHUNK_S
    assert replica.can_take(Ask("one", 30_500, 50, tpot_s=tpot_s, session="s"), 5.0)
    assert not replica.can_take(Ask("one", 30_500, 50, tpot_s=tpot_s, session="t"), 5.0)
