"""A full pool's replicas are shared out among its variants, by what is asked of each."""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil

import pytest
from accelerator_cases import LLAMA_8B
from hypothesis import given
from hypothesis import strategies as st

from policies.hardware.accelerator import VariantLimits
from policies.hardware.chunks import SHORT_CHUNK_TOKENS
from policies.hardware.iteration import Job
from policies.hardware.pool_fill import PoolFill
from policies.hardware.pool_line import PoolLine
from policies.hardware.replica import Ask, FillLimits, Replica
from policies.hardware.replica_choice import choose_replica, find_room, least_loaded
from policies.hardware.variant_homes import FULL_SHARE, HALF_LIFE_S, VariantHomes

SMALL = replace(LLAMA_8B, memory_bytes=400e9)
LARGE = replace(SMALL, weights_bytes=70e9, active_weights_bytes=70e9, active_parameters=70e9)
MIDDLE = replace(SMALL, weights_bytes=30e9, active_weights_bytes=30e9, active_parameters=30e9)
VARIANTS: Mapping[str, VariantLimits] = {
    "small": VariantLimits(SMALL, 8),
    "large": VariantLimits(LARGE, 8),
    "middle": VariantLimits(MIDDLE, 8),
}
BY_STEP = ("large", "middle", "small")


def full(count: int = 4, jobs: int = 1) -> list[Replica]:
    """Return replicas that each decode some long replies from second 1 on."""
    replicas = [Replica(VARIANTS, keeps_tpot=True) for _ in range(count)]
    for replica in replicas:
        for number in range(jobs):
            replica.submit(Job(f"long-{number}", "small", 100, 100_000), 0.0)
        replica.advance(1.0)
    return replicas


def asked(replicas: list[Replica], prompts: Mapping[str, int], at: float = 1.0) -> VariantHomes:
    """Return the homes of a full pool of which so many prompts of 1,000 tokens were asked."""
    homes = VariantHomes(replicas)
    for variant, count in prompts.items():
        for _ in range(count):
            homes.note(Ask(variant, 1_000, 0), at)
    return homes


def test_each_variant_has_replicas_by_the_time_that_is_asked_of_it() -> None:
    homes = asked(full(4), {"large": 24, "small": 100})
    # Of four replicas the large one's prompts take 2.7.
    large_s, small_s = 24 * LARGE.prefill_s(1_000), 100 * SMALL.prefill_s(1_000)
    assert 4 * large_s / (large_s + small_s) == pytest.approx(2.7, abs=0.05)
    assert homes.longest == "large"
    assert homes.of("large") == [0, 1, 2]
    assert homes.of("small") == [2, 3]
    assert homes.of("middle") is None, "nobody asks for it"


def test_a_pool_is_shared_out_while_none_is_idle_and_most_came_when_none_was() -> None:
    replicas = full(2)
    replicas[0].accelerator.cancel("long-0", 2.0)
    replicas[0].advance(3.0)
    assert not replicas[0].jobs
    homes = VariantHomes(replicas)
    chat = Ask("large", 1_000, 0)
    for _ in range(10):
        homes.note(chat, 3.0)
    replicas[0].submit(Job("another", "small", 100, 100_000), 3.0)
    later = round(10 * FULL_SHARE / (1.0 - FULL_SHARE))
    for _ in range(later - 1):
        homes.note(chat, 3.0)
    assert homes.of("large") is None, "a burst is served wherever there is room"
    for _ in range(2):
        homes.note(chat, 3.0)
    assert homes.of("large") == [0, 1]
    replicas[0].accelerator.cancel("another", 4.0)
    replicas[0].advance(5.0)
    assert homes.of("large") is None, "one is idle"


def test_what_was_asked_for_long_ago_counts_for_little() -> None:
    homes = asked(full(4), {"large": 50})
    for _ in range(20):
        homes.note(Ask("small", 1_000, 0), 1.0 + 12 * HALF_LIFE_S)
    assert homes.of("large") == [0]
    assert homes.of("small") == [0, 1, 2, 3]


def test_a_pool_that_was_full_long_ago_is_not_shared_out_by_that() -> None:
    replicas = full(2)
    homes = asked(replicas, {"large": 50})
    replicas[0].accelerator.cancel("long-0", 2.0)
    replicas[0].advance(3.0)
    later_s = 1.0 + 12 * HALF_LIFE_S
    for _ in range(5):
        homes.note(Ask("large", 1_000, 0), later_s)
    replicas[0].submit(Job("another", "small", 100, 100_000), later_s)
    assert homes.of("large") is None


def test_replies_count_by_steps_that_are_full() -> None:
    homes = VariantHomes(full(4))
    step_s = LARGE.step_s(8, 8 * 1_200) / 8
    replies = round(2_000 * SMALL.prefill_s(1_000) / (LARGE.prefill_s(1_000) + 400 * step_s))
    for _ in range(replies):
        homes.note(Ask("large", 1_000, 400), 1.0)
    for _ in range(2_000):
        homes.note(Ask("small", 1_000, 0), 1.0)
    assert homes.of("large") == [0, 1]
    assert homes.of("small") == [2, 3]


mixes = st.dictionaries(st.sampled_from(BY_STEP), st.integers(1, 200), min_size=1)


@given(st.integers(1, 9), mixes)
def test_every_variant_has_a_replica_and_as_many_as_its_part(
    count: int, prompts: dict[str, int]
) -> None:
    homes = asked(full(count), prompts)
    seconds = {name: prompts[name] * VARIANTS[name].roofline.prefill_s(1_000) for name in prompts}
    own = [homes.of(name) for name in BY_STEP if name in prompts]
    for name, found in zip([n for n in BY_STEP if n in prompts], own, strict=True):
        assert found
        assert found == list(range(found[0], found[-1] + 1)), "they lie beside each other"
        part = seconds[name] / sum(seconds.values()) * count
        assert part - 0.5 <= len(found) <= ceil(part) + 1
    firsts = [found[0] for found in own if found]
    assert firsts == sorted(firsts), "the one whose steps take longest comes first"
    if len(prompts) == 1:
        assert own == [list(range(count))]


def test_the_variant_with_the_longest_steps_stays_on_its_own_replicas() -> None:
    replicas = full(4)
    homes = asked(replicas, {"large": 10, "small": 30})
    own = homes.of("large")
    assert own is not None
    assert len(own) < 4
    for index in own:
        for number in range(8):
            replicas[index].submit(Job(f"large-{number}", "large", 100, 100_000), 3.0)
        replicas[index].advance(4.0)
    assert find_room(replicas, Ask("large", 100, 100), 4.0) not in own
    assert find_room(replicas, Ask("large", 100, 100), 4.0, homes=homes) is None
    assert least_loaded(replicas, Ask("large", 100, 100), homes) not in own, "it needs a place"


def test_another_goes_where_there_is_room() -> None:
    replicas = full(4)
    homes = asked(replicas, {"large": 10, "small": 30})
    own = homes.of("small")
    assert own is not None
    assert choose_replica(replicas, Ask("small", 100, 100), 4.0, homes=homes) in own
    for index in own:
        for number in range(7):
            replicas[index].submit(Job(f"small-{number}", "small", 100, 100_000), 3.0)
        replicas[index].advance(4.0)
    found = find_room(replicas, Ask("small", 100, 100), 4.0, homes=homes)
    assert found is not None
    assert found not in own


def test_without_room_only_the_longest_stays_whatever_is_ahead_there() -> None:
    replicas = full(4)
    homes = asked(replicas, {"large": 10, "small": 30})
    of_large, of_small = homes.of("large"), homes.of("small")
    assert of_large is not None
    assert of_small is not None
    assert not set(of_large) & set(of_small)
    for index in of_large:
        replicas[index].submit(Job("ahead", "large", 50_000, 0), 4.0)
    for index in of_small:
        replicas[index].submit(Job("little", "large", 100, 0), 4.0)
    assert least_loaded(replicas, Ask("large", 100, 100), homes) in of_large
    assert least_loaded(replicas, Ask("large", 100, 100)) in of_small
    hasty = Ask("large", 100, 100, tpot_s=1e-9)
    assert choose_replica(replicas, hasty, 4.0, homes=homes) in of_large
    for index in of_small:
        for number in range(3):
            replicas[index].submit(Job(f"ahead-{number}", "large", 50_000, 0), 4.0)
    assert least_loaded(replicas, Ask("small", 100, 100), homes) in of_large


def test_a_line_shares_its_pool_out_by_what_joins_it() -> None:
    replicas = full(4)
    line: PoolLine[int] = PoolLine(replicas, PoolFill())
    for number in range(5):
        line.join(number, Ask("large", 1_000, 0, 1.0), 1.0)
    # All are the large one's own: nobody asks for another.
    for index in (1, 2, 3):
        replicas[index].submit(Job("more", "small", 100, 100_000), 4.0)
    assert line.choose(Ask("large", 100, 100), 4.0) in (1, 2, 3), "work gathers"
    for number in range(3):
        line.join(number, Ask("small", 1_000, 0, 1.0), 4.0 + 12 * HALF_LIFE_S)
    line.join(9, Ask("large", 1_000, 0, 1.0), 4.0 + 12 * HALF_LIFE_S)
    assert line.choose(Ask("large", 100, 100), 125.0) in (0, 1, 2)
    assert line.choose(Ask("small", 100, 100), 125.0) == 3


def busy_with_prompts(tpot_s: float, *, keeps_tpot: bool) -> tuple[Replica, float]:
    """Return a replica that has computed prompts for 3 s beside a long reply, and when."""
    replica = Replica(VARIANTS, keeps_tpot=keeps_tpot)
    replica.submit(Job("long", "large", 100, 100_000, tpot_s=tpot_s), 0.0)
    replica.advance(1.0)
    for number in range(20):
        replica.submit(Job(f"prompt-{number}", "large", 2_000, 0), 1.0)
    now = 1.0
    while replica.backlog_s:
        now += 0.05
        replica.advance(now)
    return replica, now


def test_where_chunks_keep_each_tpot_few_prompts_ahead_may_take_all_the_time() -> None:
    step_s, short_s = LARGE.step_s(2, 2_000), LARGE.prefill_s(SHORT_CHUNK_TOKENS)
    tpot_s = 1.2 * (step_s + short_s)
    replica, now = busy_with_prompts(tpot_s, keeps_tpot=True)
    shares = FillLimits(0.95, 0.95, 0.95)
    soon = shares._replace(ahead_s=0.1)
    another = Ask("large", 1_000, 100, 100.0, tpot_s)
    assert not replica.can_take(another, now, shares), "prompts took all of the last seconds"
    assert replica.can_take(another, now, soon)
    assert find_room([replica], another, now) == 0
    server, at = busy_with_prompts(tpot_s, keeps_tpot=False)
    assert not server.can_take(another, at, soon), "its chunks don't"
    tight = replace(another, tpot_s=0.9 * short_s)
    assert not replica.can_take(tight, now, soon), "not even short chunks keep it"
    replica.submit(Job("other", "middle", 100, 1), now)
    assert replica.backlog_s < 0.1
    assert not replica.can_take(another, now, soon), "nor with one of another variant between"
    replica.submit(Job("ahead", "large", 4_000, 1), now)
    assert replica.backlog_s > 0.1
    assert not replica.can_take(another, now, soon), "it would wait behind what is ahead"


@pytest.mark.parametrize("times", [0.97, 1.03])
def test_each_variant_with_prompts_takes_a_short_chunk_of_a_round(times: float) -> None:
    soon = FillLimits(1.0, 1.0, 0.95, ahead_s=0.1)
    chunks_s = sum(each.prefill_s(SHORT_CHUNK_TOKENS) for each in (LARGE, MIDDLE))

    def beside_another(tpot_s: float) -> tuple[Replica, float]:
        replica, now = busy_with_prompts(tpot_s, keeps_tpot=True)
        replica.submit(Job("other", "middle", 100, 1), now)
        assert 0.0 < replica.backlog_s < 0.1
        return replica, now

    round_s = beside_another(1.0)[0].accelerator.round_s("large", 1_000)
    tpot_s = times * (round_s + chunks_s)
    replica, now = beside_another(tpot_s)
    assert replica.can_take(Ask("large", 1_000, 100, 100.0, tpot_s), now, soon) == (times > 1.0)
