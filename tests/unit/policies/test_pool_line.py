"""The line of a pool: who waits for a replica with room, in which order, and how long."""

from dataclasses import dataclass, replace
from math import ceil, inf

import pytest
from accelerator_cases import LLAMA_8B, SMALL
from hypothesis import given
from hypothesis import strategies as st

from policies.hardware.accelerator import VariantLimits
from policies.hardware.iteration import FirstToken, Job
from policies.hardware.pool_fill import PoolFill
from policies.hardware.pool_line import GIVE_WAY_SHARE, GIVES_WAY, KEPT_S, RECHECK_S, PoolLine
from policies.hardware.replica import Ask, Replica
from policies.hardware.replica_choice import find_room, least_loaded

VARIANTS = {
    "llama": VariantLimits(LLAMA_8B, max_batch=4),
    "small": VariantLimits(replace(SMALL, memory_bytes=80e9), max_batch=3),
}
STEP_S = LLAMA_8B.step_s(1, 500)
TTFT_S = 2.0


@dataclass(frozen=True)
class Waiter:
    name: int
    ask: Ask
    due_at: float
    gave_way: bool = False


class Driven:
    """A pool whose line is asked as a worker asks it, with a list of its own of who waits."""

    def __init__(self, replicas: int = 1, *, by_due: bool = False) -> None:
        self.replicas = [Replica(VARIANTS, keeps_tpot=by_due) for _ in range(replicas)]
        self.fill = PoolFill()
        self.line: PoolLine[int] = PoolLine(self.replicas, self.fill)
        self.now = 0.0
        self.waiting: list[Waiter] = []
        self.started: dict[int, float] = {}
        self.first_token: dict[int, float] = {}
        self.joined = 0
        self.came: list[float] = []
        self.others = 0

    def run(self, ask: Ask, index: int = 0) -> None:
        """Let a replica have a request, room or not."""
        self.others += 1
        self._begin(-self.others, ask, index)

    def join(self, ask: Ask) -> int:
        name = self.joined
        self.joined += 1
        self.came.append(self.now)
        self.waiting.append(Waiter(name, ask, self.now + (ask.ttft_left_s or 0.0)))
        self.line.join(name, ask, self.now)
        self.start()
        return name

    def leave(self, name: int) -> bool:
        self.waiting = [each for each in self.waiting if each.name != name]
        return self.line.leave(name)

    def start(self) -> None:
        has_begun = True
        while has_begun:
            has_begun = False
            for name, index in self.line.start(self.now):
                has_begun = True
                self._see_who_gave_way()
                (waiter,) = (each for each in self.waiting if each.name == name)
                self.waiting.remove(waiter)
                first = min(
                    (e for e in (*self.waiting, waiter) if kind_of(e) == kind_of(waiter)), key=rank
                )
                assert first == waiter, "it overtook one of its kind"
                assert name not in self.started
                self.started[name] = self.now
                self._begin(name, waiter.ask, index)
        self._see_who_gave_way()

    def _see_who_gave_way(self) -> None:
        late = {e.name: e.due_at for k, heap in self.line._waiting.items() if k[0] for e in heap}
        self.waiting = [
            replace(each, gave_way=True, due_at=late[each.name]) if each.name in late else each
            for each in self.waiting
        ]

    def go_to(self, at: float) -> None:
        """Go on from event to event, and look at the line when it wants to be looked at."""
        while True:
            due = [r.accelerator.next_event_at() for r in self.replicas]
            due.append(self.line.due_at(self.now))
            next_at = min((each for each in due if each is not None), default=at)
            self.now = max(self.now, min(at, next_at))
            for replica in self.replicas:
                for event in replica.advance(self.now):
                    if isinstance(event, FirstToken):
                        self.first_token[int(event.id)] = event.at
            self.start()
            if next_at > at or self.now >= at:
                return

    def _begin(self, name: int, ask: Ask, index: int) -> None:
        tokens = ask.input_tokens, ask.output_tokens
        left_s = inf if ask.ttft_left_s is None else ask.ttft_left_s
        if name >= 0:
            # Of one that was in line, its first token was due so long after it came.
            left_s += self.came[name] - self.now
        due_at = self.now + (left_s if left_s > 0 else ask.answer_left_s)
        job = Job(str(name), ask.variant, *tokens, tpot_s=ask.tpot_s, due_at=due_at)
        self.replicas[index].submit(job, self.now)


def kind_of(waiter: Waiter) -> tuple[bool, str, float | None]:
    return waiter.gave_way, waiter.ask.variant, waiter.ask.tpot_s


def rank(waiter: Waiter) -> tuple[float, int]:
    return waiter.due_at, waiter.name


def chat(tokens: int = 500, ttft_s: float | None = TTFT_S, variant: str = "llama") -> Ask:
    return Ask(variant, tokens, 100, ttft_s, 50 * STEP_S)


def blocked(*, by_due: bool = False) -> Driven:
    """Return a pool of one replica that decodes a long reply whose TPOT allows no company."""
    pool = Driven(by_due=by_due)
    pool.run(Ask("llama", 500, 100_000, tpot_s=STEP_S))
    pool.go_to(0.1)
    return pool


def test_a_replica_with_room_gets_a_request_at_once() -> None:
    pool = Driven()
    name = pool.join(chat())
    assert pool.started == {name: 0.0}
    assert pool.line.due_at(0.0) is None


def test_where_none_has_room_it_waits_until_its_time_is_nearly_up() -> None:
    pool = blocked()
    name = pool.join(chat(tokens=4_000))
    assert pool.line.due_at(0.1) == 0.1 + RECHECK_S
    pool.go_to(10.0)
    latest_s = 0.1 + TTFT_S - KEPT_S - LLAMA_8B.prefill_s(4_000)
    assert latest_s <= pool.started[name] <= latest_s + RECHECK_S + STEP_S
    assert pool.first_token[name] <= 0.1 + TTFT_S


# A prompt of two seconds and more, whose first token has time.
LONG = Ask("llama", 60_000, 0, ttft_left_s=60.0)


def test_a_request_goes_before_a_long_prompt_that_is_due_later() -> None:
    assert LLAMA_8B.prefill_s(LONG.input_tokens) > TTFT_S
    for by_due in (True, False):
        pool = Driven(by_due=by_due)
        pool.run(LONG)
        name = pool.join(chat())
        pool.go_to(60.0)
        assert (pool.first_token[name] <= TTFT_S) is by_due


def test_a_request_waits_as_long_as_if_a_long_prompt_that_is_due_later_were_not_there() -> None:
    pool = blocked(by_due=True)
    pool.run(LONG)
    name = pool.join(replace(chat(tokens=4_000), answer_left_s=100.0))
    pool.go_to(10.0)
    latest_s = 0.1 + TTFT_S - KEPT_S - LLAMA_8B.prefill_s(4_000)
    chunk_s = LLAMA_8B.prefill_s(LONG.input_tokens) / 10
    assert latest_s <= pool.started[name] <= latest_s + RECHECK_S + chunk_s


def test_a_request_without_room_goes_where_least_is_computed_before_it() -> None:
    pool = Driven(2, by_due=True)
    for index in range(2):
        pool.run(Ask("llama", 500, 100_000, tpot_s=STEP_S), index)
    pool.run(LONG, 0)
    pool.run(Ask("llama", 5_000, 0, ttft_left_s=0.5), 1)
    assert pool.replicas[0].backlog_s > pool.replicas[1].backlog_s
    asked = replace(chat(ttft_s=1.0), due_at=1.0)
    assert least_loaded(pool.replicas, asked) == 0
    assert least_loaded(pool.replicas, replace(asked, due_at=90.0)) == 1


def test_one_that_does_not_wait_in_the_line_goes_before_what_is_due_later_too() -> None:
    pool = Driven(2, by_due=True)
    pool.run(LONG, 0)
    assert pool.line.choose(chat(), 0.0) == 0
    for index in range(2):
        pool.run(Ask("llama", 500, 100_000, tpot_s=STEP_S), index)
    pool.run(Ask("llama", 5_000, 0, ttft_left_s=0.5), 1)
    assert pool.line.choose(chat(), 0.0) == 0
    lost = replace(chat(ttft_s=-1.0), answer_left_s=90.0)
    assert pool.line.choose(lost, 0.0) == 1, "it comes after the long one"
    assert Driven(2).line.choose(chat(), 0.0) == 0


def test_it_begins_as_soon_as_there_is_room() -> None:
    pool = Driven()
    pool.run(Ask("llama", 500, 100, tpot_s=STEP_S))
    pool.go_to(0.1)
    name = pool.join(chat())
    pool.go_to(10.0)
    ended_s = LLAMA_8B.prefill_s(500) + LLAMA_8B.decode_s(100, 1, 500)
    assert pool.started[name] == pytest.approx(ended_s)
    assert ended_s < 0.1 + TTFT_S - KEPT_S - 2 * RECHECK_S


def test_what_has_no_ttft_or_none_left_waits_for_nobody() -> None:
    pool = blocked()
    assert pool.join(chat(ttft_s=None)) in pool.started
    assert pool.join(chat(ttft_s=0.9 * KEPT_S)) in pool.started
    assert pool.join(replace(chat(ttft_s=-1.0), answer_left_s=0.0)) in pool.started
    assert not pool.line


def test_the_one_whose_token_is_due_first_begins_first() -> None:
    pool = blocked()
    late = pool.join(chat(ttft_s=3.0))
    soon = pool.join(chat(ttft_s=2.0))
    other = pool.join(chat(ttft_s=2.5, variant="small"))
    pool.go_to(10.0)
    assert sorted(pool.started, key=lambda name: pool.started[name]) == [soon, other, late]


def test_a_place_is_for_the_one_whose_token_is_due_first_whatever_its_tpot() -> None:
    pool = Driven()
    for tokens in (100, 10_000, 10_000, 10_000):
        pool.run(Ask("llama", 500, tokens))
    pool.go_to(0.2)
    late = pool.join(replace(chat(ttft_s=3.0), tpot_s=None))
    soon = pool.join(chat(ttft_s=2.5))
    pool.go_to(1.0)
    assert soon in pool.started
    assert late not in pool.started


def test_there_is_room_only_where_the_time_that_is_left_is_enough() -> None:
    pool = Driven(replicas=2)
    pool.run(Ask("llama", 500, 100_000, tpot_s=STEP_S))
    for _ in range(3):
        pool.run(Ask("llama", 30_000, 0), index=1)
    backlog_s = pool.replicas[1].backlog_s
    assert backlog_s > 1.0 + KEPT_S
    name = pool.join(chat(ttft_s=backlog_s))
    pool.go_to(10.0)
    assert pool.first_token[name] <= backlog_s


def test_a_request_is_not_left_in_line_while_others_wait_for_places() -> None:
    """They would go before it: batches wait there, of lower priority."""
    pool = Driven()
    for _ in range(4):
        pool.run(Ask("llama", 500, 10_000))
    pool.go_to(0.2)
    in_line = pool.join(chat())
    assert pool.waiting
    other = pool.join(chat(variant="small"))
    assert other in pool.started, "it has places of its own"
    pool.leave(in_line)
    pool.run(Ask("llama", 500, 10_000))
    assert pool.join(chat()) in pool.started


def test_neither_is_one_where_others_wait_for_memory() -> None:
    pool = Driven()
    free_bytes = pool.replicas[0].accelerator.kv_free_bytes
    tokens = int(0.6 * free_bytes / LLAMA_8B.kv_bytes_per_token)
    pool.run(Ask("llama", 500, tokens))
    pool.go_to(0.1)
    pool.join(Ask("llama", 500, tokens, TTFT_S))
    assert pool.waiting
    pool.run(Ask("llama", 500, tokens))
    pool.start()
    assert not pool.waiting


def test_who_leaves_never_begins_and_the_others_keep_their_order() -> None:
    pool = blocked()
    names = [pool.join(chat(ttft_s=ttft_s)) for ttft_s in (3.0, 2.0, 4.0, 2.5, 3.5)]
    assert pool.leave(names[1])
    assert not pool.leave(names[1])
    assert not pool.leave(99)
    assert len(pool.line) == pool.line.waiting_of("llama") == 4
    pool.go_to(20.0)
    begun = sorted(pool.started, key=lambda name: pool.started[name])
    assert begun == [names[3], names[0], names[4], names[2]]


def test_a_line_is_cleared_in_the_order_in_which_tokens_are_due() -> None:
    pool = blocked()
    names = [
        pool.join(chat(ttft_s=ttft_s, variant=variant))
        for ttft_s, variant in ((3.0, "llama"), (2.0, "small"), (2.5, "llama"))
    ]
    assert list(pool.line.clear()) == [names[1], names[2], names[0]]
    assert not pool.line
    assert pool.line.waiting_of("llama") == 0
    assert pool.line.due_at(pool.now) is None
    assert not list(pool.line.start(pool.now + 100.0))


def test_the_prompts_of_the_line_are_told() -> None:
    pool = blocked()
    assert pool.line.prompt_s == 0.0
    for tokens, variant in ((500, "llama"), (4_000, "llama"), (1_000, "small")):
        pool.join(chat(tokens, variant=variant))
    small_s = VARIANTS["small"].roofline.prefill_s(1_000)
    expected_s = LLAMA_8B.prefill_s(500) + LLAMA_8B.prefill_s(4_000) + small_s
    assert pool.line.prompt_s == pytest.approx(expected_s)
    assert (pool.line.waiting_of("llama"), pool.line.waiting_of("small")) == (2, 1)


def far(tokens: int, ttft_s: float = 8.0, answer_s: float = 60.0) -> Ask:
    """Return a request with a prompt whose deadline is later than its first token has to be."""
    return replace(chat(tokens, ttft_s), answer_left_s=answer_s)


@pytest.fixture
def all_may_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any of few prompts give way, which is a limit to the share of many."""
    monkeypatch.setattr("policies.hardware.pool_line.GIVE_WAY_SHARE", 1.0)


@pytest.mark.usefixtures("all_may_give_way")
@pytest.mark.parametrize("times", [0.9, 1.1])
def test_one_with_a_far_longer_prompt_gives_way_to_one_that_has_no_time_left(times: float) -> None:
    pool = blocked()
    tokens = next(
        n
        for n in range(500, 30_000, 10)
        if LLAMA_8B.prefill_s(n) >= times * GIVES_WAY * LLAMA_8B.prefill_s(500)
    )
    long, short = pool.join(far(tokens)), pool.join(chat(ttft_s=1.0))
    pool.go_to(60.0)
    assert pool.first_token[short] <= 0.1 + 1.0
    ttft_s = 8.0 if times < 1.0 else 60.0 - 100 * 50 * STEP_S
    latest_s = 0.1 + ttft_s - KEPT_S - LLAMA_8B.prefill_s(tokens)
    assert latest_s <= pool.started[long] <= latest_s + RECHECK_S + STEP_S


@pytest.mark.usefixtures("all_may_give_way")
def test_the_longest_gives_way_one_for_each_that_has_no_time_left() -> None:
    pool = blocked()
    names = [pool.join(far(tokens, 6.0)) for tokens in (10_000, 12_000, 11_000)]
    pool.join(chat(ttft_s=1.0))
    pool.go_to(2.0)
    assert [each.name for each in pool.waiting if each.gave_way] == [names[1]]
    pool.join(chat(ttft_s=1.0))
    pool.go_to(3.0)
    assert [each.name for each in pool.waiting if each.gave_way] == names[1:]


def test_no_more_than_a_share_of_the_prompts_of_a_length_gives_way() -> None:
    pool = blocked()
    for _ in range(ceil(2 / GIVE_WAY_SHARE) - 3):
        pool.leave(pool.join(far(10_000, 6.0)))
    longer = pool.join(far(17_000, 6.0))
    names = [pool.join(far(tokens, 6.0)) for tokens in (10_000, 12_000, 11_000)]
    for _ in range(3):
        pool.join(chat(ttft_s=1.0))
    pool.go_to(2.0)
    assert [each.name for each in pool.waiting if each.gave_way] == names[1:]
    assert longer in {each.name for each in pool.waiting}, "of another length, and the only one"


def test_one_that_would_be_late_itself_gives_way_until_its_deadline_needs_it() -> None:
    pool = blocked()
    lost = pool.join(far(500, -1.0, 100.0))
    in_time = pool.join(chat())
    pool.go_to(10.0)
    assert pool.first_token[in_time] <= 0.1 + TTFT_S
    assert lost not in pool.started
    pool.go_to(100.0)
    latest_s = 0.1 + 100.0 - 100 * 50 * STEP_S - KEPT_S - LLAMA_8B.prefill_s(500)
    assert latest_s <= pool.started[lost] <= latest_s + RECHECK_S + STEP_S


def test_one_is_lost_whose_token_is_late_by_what_is_ahead_of_it() -> None:
    pool = blocked()
    for _ in range(2):
        pool.run(Ask("llama", 30_000, 0))
    backlog_s = pool.replicas[0].backlog_s
    own_s = LLAMA_8B.prefill_s(500)
    lost = pool.join(far(500, backlog_s + 0.9 * own_s, 100.0))
    in_time = pool.join(far(500, backlog_s + 1.1 * own_s, 100.0))
    assert lost not in pool.started
    assert in_time in pool.started


def test_one_that_would_be_late_itself_begins_when_there_is_room() -> None:
    pool = Driven()
    pool.run(Ask("llama", 500, 300, tpot_s=STEP_S))
    pool.go_to(0.1)
    lost = pool.join(far(500, -1.0, 100.0))
    pool.go_to(50.0)
    ended_s = LLAMA_8B.prefill_s(500) + LLAMA_8B.decode_s(300, 1, 500)
    assert pool.started[lost] == pytest.approx(ended_s, abs=RECHECK_S)


def test_one_that_gave_way_begins_when_there_is_room_and_nobody_else_waits() -> None:
    pool = Driven()
    # Its TPOT allows steps, but no prompt beside them.
    pool.run(Ask("llama", 500, 300, tpot_s=STEP_S))
    pool.go_to(0.1)
    long = pool.join(far(12_000))
    pool.join(chat(ttft_s=0.5))
    pool.go_to(0.5)
    assert long not in pool.started
    pool.go_to(20.0)
    ended_s = LLAMA_8B.prefill_s(500) + LLAMA_8B.decode_s(300, 1, 500)
    assert ended_s <= pool.started[long] < 8.0


def test_one_whose_deadline_comes_with_its_token_does_not_give_way() -> None:
    pool = blocked()
    long = pool.join(far(12_000, 6.0, 4.0 + 100 * 50 * STEP_S))
    pool.join(chat(ttft_s=1.0))
    pool.go_to(20.0)
    latest_s = 0.1 + 6.0 - KEPT_S - LLAMA_8B.prefill_s(12_000)
    assert latest_s <= pool.started[long] <= latest_s + RECHECK_S + STEP_S


def test_nobody_gives_way_to_one_for_which_there_is_room() -> None:
    pool = Driven()
    for _ in range(4):
        pool.run(Ask("llama", 500, 10_000))
    pool.go_to(0.2)
    long = pool.join(far(20_000))
    assert pool.join(chat(variant="small")) in pool.started
    pool.go_to(0.4)
    assert [(each.name, each.gave_way) for each in pool.waiting] == [(long, False)]


@pytest.mark.usefixtures("all_may_give_way")
def test_one_that_gave_way_is_behind_all_others_whatever_room_there_is() -> None:
    pool = Driven()
    pool.run(Ask("llama", 500, 300, tpot_s=STEP_S))
    pool.run(Ask("llama", 500, 100_000))
    pool.go_to(0.1)
    long = pool.join(far(12_000))
    pool.join(chat(ttft_s=0.5))
    tight = pool.join(Ask("llama", 500, 100, 6.0, 0.9 * STEP_S))
    pool.go_to(20.0)
    assert 5.0 < pool.started[tight] <= pool.started[long]


asks = st.builds(
    Ask,
    variant=st.sampled_from(["llama", "small"]),
    input_tokens=st.integers(1, 30_000),
    output_tokens=st.integers(0, 2_000),
    ttft_left_s=st.none() | st.floats(-0.5, 4.0),
    answer_left_s=st.floats(0.0, 6.0),
    tpot_s=st.sampled_from([None, 0.9 * STEP_S, 1.5 * STEP_S, 20 * STEP_S]),
)
acts = st.tuples(st.sampled_from(["join", "join", "join", "leave", "pass"]), asks, st.integers(0))
scripts = st.lists(acts, min_size=1, max_size=30)


@given(st.integers(1, 3), st.booleans(), scripts)
def test_nobody_is_lost_nor_begins_twice_nor_waits_without_need(
    replicas: int, by_due: bool, script: list[tuple[str, Ask, int]]
) -> None:
    pool = Driven(replicas, by_due=by_due)
    left: set[int] = set()
    for act, ask, number in script:
        if act == "join":
            pool.join(ask)
        elif act == "leave" and pool.joined:
            name = number % pool.joined
            was_waiting = any(each.name == name for each in pool.waiting)
            assert pool.leave(name) == was_waiting
            left |= {name} if was_waiting else set()
        else:
            pool.go_to(pool.now + number % 7 * 0.1)
        names = [*pool.started, *left, *(each.name for each in pool.waiting)]
        assert sorted(names) == list(range(pool.joined))
        assert len(pool.line) == len(pool.waiting)
        pool.start()
        _nobody_waits_without_need(pool)
    pool.go_to(pool.now + 6.0)
    assert not pool.line
    assert len(pool.started) + len(left) == pool.joined


def _nobody_waits_without_need(pool: Driven) -> None:
    """The first of each kind has time left, and no replica room for it if it is its turn."""
    is_anyones_turn = all(each.gave_way for each in pool.waiting)
    for kind in {kind_of(each) for each in pool.waiting}:
        first = min((each for each in pool.waiting if kind_of(each) == kind), key=rank)
        left_s = first.due_at - pool.now
        ask = replace(first.ask, ttft_left_s=left_s, due_at=first.due_at)
        assert first.ask.ttft_left_s is not None
        if is_anyones_turn or not first.gave_way:
            homes = pool.line._homes
            assert find_room(pool.replicas, ask, pool.now, pool.fill.limits, homes) is None
        assert left_s > KEPT_S + min(
            r.ahead_s(ask.due_at) + r.prefill_s(ask) for r in pool.replicas
        )
