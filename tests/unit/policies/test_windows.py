"""Batch windows: full, slack, window close, fairness, and that nothing is lost or doubled.

Time is a number here, and the target a function of the members: no clock and no fleet.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import pytest
from decisions import target_in
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from policy_cases import NOW, PROPERTY, a_situation, bulk, profile, status
from window_cases import (
    MARGIN_S,
    RETRY_S,
    SERVICE_S,
    End,
    TargetOf,
    always,
    commit,
    filled,
    member,
    releases,
    run,
    target,
    windows,
)

from policies import Expelled, Member, Release, Target, Windows
from policies.batching.fair_queue import Turns


def nowhere(members: Sequence[Member]) -> Target | None:
    return None


def ids(members: Sequence[Member]) -> list[int]:
    return [each.offset for each in members]


def in_turn(
    members: Iterable[Member], share_of: Callable[[str], float] = lambda _: 1.0
) -> list[Member]:
    return list(turns_of(members, share_of))


def turns_of(members: Iterable[Member], share_of: Callable[[str], float] = lambda _: 1.0) -> Turns:
    held = {each.profile.id: each for each in members}
    turns = Turns(held, share_of)
    for each in held.values():
        turns.add(each)
    return turns


def run_to_first_end(
    held: Windows, target_of: TargetOf, start: float = NOW
) -> tuple[float, list[End]]:
    """Let time pass from one due time to the next until something ends."""
    now = start
    for _ in range(5000):
        ends = run(held, now, target_of)
        if ends:
            return now, ends
        following = held.next_due_at()
        assert following > now, "due again at once: the loop would spin"
        now = following
    raise AssertionError("nothing ended in 5000 looks")


def test_nothing_held_nothing_due() -> None:
    held = windows()
    assert (len(held), held.next_due_at()) == (0, math.inf)
    assert list(held.due(NOW, always())) == []
    assert held.remove("r1") is None
    assert (list(held.members()), held.sizes()) == ([], {})


def test_what_is_held_is_told() -> None:
    held = filled(3)
    held.add(member(9, group="other"))
    assert len(held) == 4
    assert held.sizes() == {"g": 3, "other": 1}
    assert sorted(ids(list(held.members()))) == [0, 1, 2, 9]
    removed = held.remove("r0009")
    assert removed is not None
    assert removed.offset == 9
    assert held.sizes() == {"g": 3}


def test_a_new_group_is_looked_at_at_once() -> None:
    held = filled(1)
    assert held.next_due_at() <= NOW
    assert run(held, NOW, always()) == []
    assert held.next_due_at() > NOW


def test_a_batch_goes_when_the_device_is_full() -> None:
    held = filled(7)
    assert run(held, NOW, always()) == []
    held.add(member(7))
    assert held.next_due_at() <= NOW
    (release,) = releases(run(held, NOW, always()))
    assert release.reason == "full"
    assert ids(release.members) == list(range(8))
    assert release.target == target()
    assert len(held) == 0
    assert held.next_due_at() == math.inf


def test_the_policy_may_call_a_batch_full_before_the_device_does() -> None:
    held = filled(4, into=windows(members_max=3))
    (release,) = releases(run(held, NOW, always()))
    assert (release.reason, len(release.members)) == ("full", 3)
    assert len(held) == 1


def test_several_full_batches_go_at_once_and_the_rest_waits() -> None:
    held = filled(20)
    found = releases(run(held, NOW, always()))
    assert [(each.reason, len(each.members)) for each in found] == [("full", 8), ("full", 8)]
    assert len(held) == 4
    assert held.next_due_at() > NOW


def test_a_batch_is_full_by_tokens() -> None:
    held = filled(3, input_tokens=300, output_tokens=100)
    assert run(held, NOW, always(tokens_max=1601)) == []
    held.add(member(3, input_tokens=300, output_tokens=100))
    assert run(held, NOW, always(tokens_max=1601)) == []
    held.add(member(4, input_tokens=300, output_tokens=100))
    assert held.next_due_at() <= NOW
    (release,) = releases(run(held, NOW, always(tokens_max=1601)))
    assert (release.reason, len(release.members)) == ("full", 4)
    assert sum(m.profile.input_tokens + m.profile.output_tokens for m in release.members) <= 1601


def test_a_batch_of_exactly_the_tokens_is_full() -> None:
    held = filled(4, input_tokens=300, output_tokens=100)
    (release,) = releases(run(held, NOW, always(tokens_max=1600)))
    assert (release.reason, len(release.members)) == ("full", 4)


def test_a_member_larger_than_a_batch_goes_alone() -> None:
    held = filled(2, input_tokens=900, output_tokens=0)
    found = releases(run(held, NOW, always(tokens_max=500)))
    assert [len(each.members) for each in found] == [1, 1]


def test_a_batch_goes_when_its_window_closes() -> None:
    held = filled(2)
    held.add(member(2, held_at=NOW + 10))
    now, ends = run_to_first_end(held, always())
    (release,) = releases(ends)
    assert release.reason == "window"
    assert now == pytest.approx(NOW + 30, abs=0.2)
    assert now >= NOW + 30
    # Those who came later go along.
    assert sorted(ids(release.members)) == [0, 1, 2]


def test_a_window_of_no_length_closes_at_once() -> None:
    held = filled(1, window_s=0.0)
    (release,) = releases(run(held, NOW, always()))
    assert release.reason == "window"


def test_a_batch_goes_when_its_slack_runs_out() -> None:
    held = filled(3)
    held.add(member(3, deadline=NOW + 20))
    now, ends = run_to_first_end(held, always())
    (release,) = releases(ends)
    assert release.reason == "slack"
    assert now == pytest.approx(NOW + 20 - SERVICE_S - MARGIN_S, abs=0.2)
    assert now + SERVICE_S <= NOW + 20
    assert release.slack_s == pytest.approx(0, abs=0.2)
    # The earliest deadline first.
    assert ids(release.members) == [3, 0, 1, 2]


def test_slack_of_a_late_comer_counts() -> None:
    held = filled(3)
    assert run(held, NOW, always()) == []
    held.add(member(3, held_at=NOW + 1, deadline=NOW + 7))
    assert held.next_due_at() <= NOW + 2
    now, ends = run_to_first_end(held, always(), NOW + 1)
    assert releases(ends)[0].reason == "slack"
    assert now <= NOW + 2.2


def test_the_slack_left_is_told() -> None:
    held = filled(8, deadline=NOW + 100)
    (release,) = releases(run(held, NOW, always()))
    assert release.slack_s == pytest.approx(100 - SERVICE_S - MARGIN_S)


def test_a_batch_that_grows_keeps_its_deadline() -> None:
    """Each member makes the batch take longer, so its slack runs out sooner than it looked."""
    held = windows(members_max=1000)

    def slower(members: Sequence[Member]) -> Target:
        return target(members_max=1000, service_s=0.5 * len(members))

    now = NOW
    ends: list[End] = []
    for second in range(100):
        held.add(member(second, held_at=NOW + second, deadline=NOW + 100, window_s=1000))
        while not ends and held.next_due_at() <= NOW + second:
            now = max(now, held.next_due_at(), NOW + second)
            ends = run(held, now, slower)
        if ends:
            break
        while not ends and held.next_due_at() < NOW + second + 1:
            now = held.next_due_at()
            ends = run(held, now, slower)
        if ends:
            break
    (release,) = releases(ends)
    assert release.reason == "slack"
    assert len(release.members) > 50
    assert now + release.target.estimate.finish_s <= NOW + 100


def test_a_pool_that_slows_down_is_noticed_before_the_slack_is_gone() -> None:
    held = filled(3, deadline=NOW + 100, window_s=1000)
    service_s = 4.0
    now, ends = NOW, run(held, NOW, always(service_s=service_s))
    while not ends:
        now = held.next_due_at()
        service_s = 30.0
        ends = run(held, now, always(service_s=service_s))
    assert releases(ends)[0].reason == "slack"
    assert now + service_s <= NOW + 100


def test_a_group_that_waits_long_is_not_looked_at_often() -> None:
    held = filled(3, window_s=3000.0)
    looks = 0

    def counted(members: Sequence[Member]) -> Target:
        nonlocal looks
        looks += 1
        return target()

    run_to_first_end(held, counted)
    assert looks < 30


def test_urgent_members_go_first() -> None:
    held = windows()
    for number in range(12):
        held.add(member(number, tenant=f"t{number}", deadline=NOW + 1000 - number))
    (release,) = releases(run(held, NOW, always()))
    assert ids(release.members) == [11, 10, 9, 8, 7, 6, 5, 4]


def test_a_quiet_tenant_is_not_starved_by_a_noisy_one() -> None:
    held = windows()
    for number in range(100):
        held.add(member(number, tenant="noisy", deadline=NOW + 100))
    held.add(member(100, tenant="quiet", deadline=NOW + 3000))
    first = next(iter(held.due(NOW, always())))
    assert isinstance(first, Release)
    assert 100 in ids(first.members)
    assert len(first.members) == 8


def test_tenants_take_turns() -> None:
    held = windows()
    for number in range(30):
        held.add(member(number, tenant="a", deadline=NOW + 100))
    for number in range(30, 40):
        held.add(member(number, tenant="b", deadline=NOW + 200))
    for number in range(40, 44):
        held.add(member(number, tenant="c", deadline=NOW + 300))
    shares = [
        [each.profile.tenant for each in release.members]
        for release in releases(run(held, NOW, always(members_max=6)))
    ]
    assert shares[0] == ["a", "b", "c", "a", "b", "c"]
    assert shares[1] == ["a", "b", "c", "a", "b", "c"]
    assert sorted(shares[2]) == ["a"] * 3 + ["b"] * 3
    assert len([t for share in shares for t in share]) == 42


def test_turns_keep_each_tenants_deadlines_in_order() -> None:
    some = [
        member(n, tenant="ab"[n % 2], deadline=NOW + 100 + (n * 7) % 10, held_at=NOW + n % 3)
        for n in range(20)
    ]
    placed = in_turn(some)
    assert sorted(ids(placed)) == list(range(20))
    for tenant in "ab":
        deadlines = [m.profile.deadline for m in placed if m.profile.tenant == tenant]
        assert deadlines == sorted(deadlines)
    assert in_turn(reversed(some)) == placed


def test_a_tenant_with_twice_the_share_has_twice_the_turns() -> None:
    some = [member(n, tenant="ab"[n % 2], deadline=NOW + 100 + n) for n in range(24)]
    placed = in_turn(some, {"a": 2.0, "b": 1.0}.__getitem__)
    assert [m.profile.tenant for m in placed[:12]].count("a") == 8
    assert sorted(ids(placed)) == list(range(24))


def sorted_at_once(members: Iterable[Member], share_of: Callable[[str], float]) -> list[Member]:
    """The order in turn, worked out from nothing."""
    by_deadline = sorted(members, key=lambda m: (m.profile.deadline, m.held_at, m.profile.id))
    turns: defaultdict[str, float] = defaultdict(float)
    placed = []
    for each in by_deadline:
        turns[each.profile.tenant] += 1 / share_of(each.profile.tenant)
        placed.append((turns[each.profile.tenant], each))
    return [each for _, each in sorted(placed, key=lambda pair: pair[0])]


@pytest.mark.parametrize("seed", range(6))
def test_turns_are_kept_as_members_come_and_go(seed: int) -> None:
    rng, held = random.Random(seed), dict[str, Member]()
    share_of = {"a": 1.0, "b": 2.0, "c": 0.3}.__getitem__
    turns = Turns(held, share_of)
    for number in range(3000):
        deadline = NOW + (number if seed % 2 else rng.randrange(1000))
        new = member(number, tenant=rng.choice("aaabc"), deadline=deadline)
        held[new.profile.id] = new
        turns.add(new)
        for _ in range(rng.choice((0, 0, 1, 2)) if number < 2500 else 2):
            name = next(iter(held)) if rng.random() < 0.5 else rng.choice(list(held))
            if len(held) > 1:
                del held[name]
                turns.remove()
        # Now and then after few, now and then after more than are put in one by one.
        if rng.random() < (0.01 if number < 1000 else 0.002):
            expected = sorted_at_once(held.values(), share_of)
            assert list(turns) == expected
            assert list(islice(turns, 3)) == expected[:3]
            passed = [m for m in held.values() if m.profile.deadline <= NOW + 300]
            assert sorted(ids(turns.passed(NOW + 300))) == sorted(ids(passed))
    assert list(turns) == sorted_at_once(held.values(), share_of)


def test_what_is_held_no_more_is_forgotten() -> None:
    held = dict[str, Member]()
    turns = Turns(held, lambda _: 1.0)
    for number in range(5000):
        new = member(number)
        held[new.profile.id] = new
        turns.add(new)
        if number % 100 == 99:
            list(turns)
        if number >= 100:
            del held[f"r{number - 50:04}"]
            turns.remove()
    kept = sum(len(queue.members) for queue in turns._queues.values()) + len(turns._fresh)
    assert kept < 1000


def test_to_look_at_many_that_wait_for_a_pool_asks_for_a_few_of_them() -> None:
    """To sort half a million at each look takes a second, four times a second."""
    held = filled(5000)
    run(held, NOW, nowhere)
    read = 0

    class Counting(Turns):
        def _is_held(self, member: Member) -> bool:
            nonlocal read
            read += 1
            return super()._is_held(member)

    for window in held._windows.values():
        window.turns.__class__ = Counting
    for look in range(1, 11):
        held.add(member(5000 + look))
        assert run(held, NOW + look, nowhere) == []
    assert read < 1000


def test_who_comes_while_there_is_no_pool_waits_for_the_next_look() -> None:
    held = filled(1)
    assert run(held, NOW, nowhere) == []
    assert held.next_due_at() == NOW + RETRY_S
    held.add(member(1))
    assert held.next_due_at() == NOW + RETRY_S


def test_a_member_whose_deadline_has_passed_is_given_up() -> None:
    held = filled(2)
    held.add(member(2, deadline=NOW))
    ends = run(held, NOW, always())
    assert [(type(e), e.reason) for e in ends] == [(Expelled, "deadline_passed")]
    assert isinstance(ends[0], Expelled)
    assert ends[0].member.offset == 2
    assert len(held) == 2


def test_a_member_that_is_given_up_does_not_go_with_the_others() -> None:
    held = filled(8)
    held.add(member(8, deadline=NOW - 5))
    given_up, release = run(held, NOW, always())
    assert isinstance(given_up, Expelled)
    assert isinstance(release, Release)
    assert ids(release.members) == list(range(8))


def test_without_a_pool_a_group_waits_and_is_looked_at_again() -> None:
    held = filled(20)
    assert run(held, NOW, nowhere) == []
    assert held.next_due_at() == NOW + RETRY_S
    assert run(held, NOW + RETRY_S, nowhere) == []
    assert len(held) == 20


def test_without_a_pool_the_longest_wait_ends_it() -> None:
    held = filled(2)
    held.add(member(2, held_at=NOW + 50))
    held.add(member(3, longest_wait_s=100.0))
    now, ends = run_to_first_end(held, nowhere)
    assert [(e.member.offset, e.reason) for e in ends if isinstance(e, Expelled)] == [
        (3, "pool_unavailable")
    ]
    assert now == pytest.approx(NOW + 100, abs=RETRY_S)
    assert now >= NOW + 100
    now, _ = run_to_first_end(held, nowhere, held.next_due_at())
    assert now == pytest.approx(NOW + 600, abs=RETRY_S)
    assert ids(list(held.members())) == [2]


def test_without_a_pool_the_deadline_may_come_first() -> None:
    held = filled(1, deadline=NOW + 10)
    now, (end,) = run_to_first_end(held, nowhere)
    assert end.reason == "deadline_passed"
    assert NOW + 10 <= now <= NOW + 10 + RETRY_S


def test_the_longest_wait_is_for_a_pool_and_not_for_company() -> None:
    held = filled(1, longest_wait_s=5.0)
    now, (end,) = run_to_first_end(held, always())
    assert (end.reason, now >= NOW + 30) == ("window", True)


def test_a_pool_that_appears_takes_what_waited_for_it() -> None:
    held = windows()
    for number in range(3):
        chat = profile(id=f"r{number}", window_s=0.0, longest_wait_s=20.0)
        held.add(Member(chat, "chat", NOW, number))
    assert run(held, NOW, nowhere) == []
    later = held.next_due_at()
    found = releases(run(held, later, always(path="direct", members_max=1)))
    assert [(each.reason, len(each.members)) for each in found] == [("pool_available", 1)] * 3
    assert len(held) == 0


def test_a_late_comer_goes_at_once_where_a_pool_is_available() -> None:
    held = windows()
    held.add(Member(profile(id="a"), "chat", NOW, 0))
    run(held, NOW, nowhere)
    held.add(Member(profile(id="b"), "chat", NOW, 1))
    run(held, NOW + 1, always(path="direct", members_max=1))
    held.add(Member(profile(id="c"), "chat", NOW + 2, 2))
    assert held.next_due_at() <= NOW + 2


def test_the_target_is_asked_again_after_each_release() -> None:
    held = filled(24)
    asked: list[int] = []

    def once(members: Sequence[Member]) -> Target | None:
        asked.append(len(members))
        return target() if len(asked) < 3 else None

    found = run(held, NOW, once)
    assert asked == [24, 16, 8]
    assert len(releases(found)) == 2
    assert len(held) == 8


def test_the_target_is_asked_for_no_more_than_can_go_together() -> None:
    """After an outage thousands wait, and each release must not look at all of them."""
    held = filled(1000, into=windows(members_max=10))
    asked: list[int] = []

    def counted(members: Sequence[Member]) -> Target:
        asked.append(len(members))
        return target(members_max=4)

    found = releases(run(held, NOW, counted))
    assert sum(len(each.members) for each in found) == 1000
    assert max(asked) == 10


def test_what_is_not_committed_stays_due() -> None:
    held = filled(24)
    first = next(iter(held.due(NOW, always())))
    assert len(held) == 24
    assert held.next_due_at() <= NOW
    commit(held, [first])
    assert sum(len(each.members) for each in releases(run(held, NOW, always()))) == 16


def test_a_release_that_was_thrown_away_comes_again() -> None:
    held = filled(8)
    first, second = (list(held.due(NOW, always())) for _ in range(2))
    assert first == second
    assert len(releases(first)) == 1


def test_the_same_id_is_held_once_and_the_newest_counts() -> None:
    held = filled(2)
    held.add(member(0, group="other", deadline=NOW + 50))
    assert len(held) == 2
    assert held.sizes() == {"g": 1, "other": 1}
    held.add(member(0, group="other", deadline=NOW + 60))
    assert [m.profile.deadline for m in held.members() if m.group == "other"] == [NOW + 60]


def test_tokens_of_what_was_removed_count_no_more() -> None:
    held = filled(3, input_tokens=300, output_tokens=100)
    run(held, NOW, always(tokens_max=1600))
    held.remove("r0000")
    held.add(member(3, input_tokens=300, output_tokens=100))
    assert held.next_due_at() > NOW
    assert run(held, NOW, always(tokens_max=1600)) == []


def test_members_that_end_otherwise_neither_go_nor_count() -> None:
    held = filled(8)
    assert list(held.due(NOW, always(), without={"r0003", "elsewhere"})) == []
    held = filled(9)
    (release,) = releases(list(held.due(NOW, always(), without={"r0003"})))
    assert ids(release.members) == [0, 1, 2, 4, 5, 6, 7, 8]
    held = filled(2)
    late = NOW + 1e6
    ends = list(held.due(late, always(), without={"r0000"}))
    assert [each.members[0].offset for each in ends] == [1]


def test_members_are_counted_by_class_until_they_leave() -> None:
    held = filled(3)
    held.add(member(9, group="other", task="chat"))
    held.add(member(2))
    assert dict(held.tasks()) == {"bulk": 3, "chat": 1}
    held.remove("r0009")
    held.remove("r0000")
    assert dict(held.tasks()) == {"bulk": 2, "chat": 0}


def test_groups_never_share_a_batch() -> None:
    held = windows()
    for number in range(32):
        held.add(member(number, group=f"g{number % 3}"))
    for release in releases(run(held, NOW, always())):
        assert len({each.group for each in release.members}) == 1
    assert set(held.sizes().values()) == {2, 3}


def test_next_due_is_that_of_the_most_urgent_group() -> None:
    held = windows()
    held.add(member(0, group="slow"))
    held.add(member(1, group="fast", deadline=NOW + 8))
    run(held, NOW, always())
    assert held.next_due_at() <= NOW + 3
    held.remove("r0001")
    assert held.next_due_at() > NOW + 3


def test_windows_and_the_fleet_together() -> None:
    """The real target: the cheap board takes a batch, or, when it is down, another pool."""
    where = a_situation("premium", "board")
    held = filled(5)
    now, ends = run_to_first_end(held, lambda members: target_in(members, where, NOW))
    assert releases(ends)[0].target.option.pool == "board"
    assert now == pytest.approx(NOW + 30, abs=0.2)
    where.view.report(status("board", state="down"))
    held = filled(5)
    _, ends = run_to_first_end(held, lambda members: target_in(members, where, NOW))
    assert releases(ends)[0].target.option.pool == "premium"


class WindowsAgainstAList(RuleBasedStateMachine):
    """Windows beside a plain list of what is held.

    `alive` says whether there is a target; while there is one, everything is looked at when it says
    that it is due, as the batcher does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.held = Windows(members_max=6, margin_s=MARGIN_S, retry_s=RETRY_S)
        self.model: dict[str, Member] = {}
        self.ended: set[tuple[str, int]] = set()
        self.alive = False
        self.alive_since = NOW
        self.number = 0

    def target_of(self, members: Sequence[Member]) -> Target | None:
        assert members
        assert len({each.group for each in members}) == 1
        if not self.alive:
            return None
        if not members[0].profile.batchable:
            return target(path="direct", members_max=1)
        return target(members_max=5, tokens_max=2000)

    @rule(
        group=st.sampled_from(["a", "b", "direct"]),
        tenant=st.sampled_from(["x", "y"]),
        tokens=st.integers(0, 900),
        slack_s=st.floats(-1, 60),
        window_s=st.floats(0, 40),
        wait_s=st.floats(0.5, 30),
        again=st.booleans(),
    )
    def arrive(
        self,
        group: str,
        tenant: str,
        tokens: int,
        slack_s: float,
        window_s: float,
        wait_s: float,
        again: bool,
    ) -> None:
        self.number += 1
        number = self.number
        known = sorted(self.model)
        name = known[number % len(known)] if again and known else f"r{number}"
        new = Member(
            bulk(
                id=name,
                tenant=tenant,
                input_tokens=tokens,
                output_tokens=0,
                deadline=self.now + slack_s,
                window_s=window_s,
                longest_wait_s=wait_s,
                batchable=group != "direct",
            ),
            group,
            self.now,
            number,
        )
        self.held.add(new)
        self.model[name] = new
        self.look()

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        assert self.held.remove(name) == self.model.pop(name)

    @rule()
    def cancel_a_stranger(self) -> None:
        assert self.held.remove("stranger") is None

    @rule(alive=st.booleans())
    def pool_comes_or_goes(self, alive: bool) -> None:
        if alive and not self.alive:
            self.alive_since = self.now
        self.alive = alive

    @rule(seconds=st.floats(0.01, 50))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        while self.held.next_due_at() <= until:
            self.now = max(self.now, self.held.next_due_at())
            self.look()
            assert self.held.next_due_at() > self.now, "due again at once: the loop would spin"
        self.now = until

    @rule(taken=st.integers(0, 3))
    def a_look_that_stops_early(self, taken: int) -> None:
        for end in list(islice(self.held.due(self.now, self.target_of), taken)):
            self.end(end)

    @rule()
    def an_aborted_transaction(self) -> None:
        ends = self.held.due(self.now, self.target_of)
        list(zip(range(2), ends, strict=False))

    def look(self) -> None:
        for end in list(self.held.due(self.now, self.target_of)):
            self.end(end)

    def end(self, end: End) -> None:
        """Check what ends against the list, and commit it."""
        if isinstance(end, Expelled):
            gone: tuple[Member, ...] = (end.member,)
            if end.reason == "deadline_passed":
                assert end.member.profile.deadline <= self.now
            else:
                assert end.reason == "pool_unavailable"
                assert not self.alive
                assert end.member.held_at + end.member.profile.longest_wait_s <= self.now
        else:
            gone = end.members
            assert self.alive
            assert gone
            assert len({each.group for each in gone}) == 1
            assert len(gone) <= min(end.target.members_max, 6)
            tokens = sum(each.profile.input_tokens for each in gone)
            assert len(gone) == 1 or tokens <= end.target.tokens_max
            assert all(each.profile.deadline > self.now for each in gone)
        for each in gone:
            assert self.model.pop(each.profile.id) == each
            assert (each.profile.id, each.offset) not in self.ended
            self.ended.add((each.profile.id, each.offset))
            assert self.held.remove(each.profile.id) == each

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.held) == len(self.model)
        assert {each.profile.id: each for each in self.held.members()} == self.model
        sizes: dict[str, int] = {}
        for each in self.model.values():
            sizes[each.group] = sizes.get(each.group, 0) + 1
        assert self.held.sizes() == sizes

    @invariant()
    def something_held_is_due_some_time(self) -> None:
        assert (self.held.next_due_at() == math.inf) == (not self.model)

    @invariant()
    def nothing_overstays_while_there_is_a_target(self) -> None:
        """A pool that has just come is noticed within the retry."""
        if (
            self.alive
            and self.now > self.alive_since + RETRY_S
            and self.held.next_due_at() > self.now
        ):
            for each in self.model.values():
                assert each.profile.batchable
                assert each.profile.deadline - SERVICE_S - MARGIN_S > self.now
                assert each.held_at + each.profile.window_s > self.now

    def teardown(self) -> None:
        """In the end everything that came has ended once, one way or the other."""
        for _ in range(2000):
            if not self.model:
                break
            self.now = max(self.now, self.held.next_due_at())
            self.look()
        assert not self.model


TestWindowsAgainstAList = WindowsAgainstAList.TestCase
TestWindowsAgainstAList.settings = settings(PROPERTY, stateful_step_count=30)
