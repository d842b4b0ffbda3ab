"""Comparisons, the sequential test, and the choice of what runs a second time."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import POLICY, PROPERTY, a_policy, some_options

from policies import review
from policies.config.fleet import parse_fleet
from policies.config.schema import DeclarationError
from policies.quality.comparison import (
    COMPARISONS,
    answer_group,
    difference,
    excerpt,
    is_comparable,
)
from policies.quality.sampling import second_id, share_of
from policies.quality.sequential_test import (
    ALL_STAKE,
    ALPHA,
    GROUPS,
    GROUPS_TESTED,
    alpha_of,
    drift_wealth,
    group_stake,
    is_won,
    sound_wealth,
)
from policies.quality.verdicts import begun, judge
from topics import Comparison, VariantQuality

FLAWED: list[Any] = [
    *(None, 1, [], {}, {"choices": []}, {"choices": [1]}, {"data": [{"embedding": ["x"]}]}),
    *({"data": [{}]}, {"choices": "x"}, {"data": [{"embedding": [float("nan")]}]}),
]


def chat(text: str | None, *calls: tuple[str, str]) -> dict[str, Any]:
    tools = [{"id": "x", "function": {"name": name, "arguments": told}} for name, told in calls]
    return {"choices": [{"message": {"content": text, "tool_calls": tools}}]}


def vectors(*values: list[float]) -> dict[str, Any]:
    return {"data": [{"embedding": value} for value in values]}


def between(compare: str, one: object, other: object) -> float | None:
    first, second = excerpt(one), excerpt(other)
    assert first is not None
    assert second is not None
    return difference(compare, first, second)


@pytest.mark.parametrize(
    ("compare", "one", "other", "expected"),
    [
        ("labels", chat("Positive."), chat(" positive\n"), 0.0),
        ("labels", chat("positive"), chat("negative"), 1.0),
        ("labels", chat(None, ("f", '{"a": 1, "b": 2}')), chat("", ("f", '{"b":2,"a":1}')), 0.0),
        ("labels", chat(None, ("f", "{}")), chat(None, ("g", "{}")), 1.0),
        ("tool_calls", chat("x", ("f", "{}")), chat("y", ("f", "{}")), 0.0),
        ("tool_calls", chat("x"), chat("x", ("f", "{}")), 1.0),
        ("tool_calls", chat("x", ("f", "{a")), chat("x", ("f", "{a")), 0.0),
        ("greedy", chat("a b c d"), chat("a b x d"), 0.5),
        ("greedy", chat("a b"), chat("a b c d"), 0.5),
        ("greedy", chat(""), chat(""), 0.0),
        ("greedy", {"choices": [{"text": "a"}]}, {"choices": [{"text": "a"}]}, 0.0),
        ("tokens", chat("a b c d"), chat("d c b x"), 0.25),
        ("tokens", chat(""), chat(""), 0.0),
        ("embedding", vectors([1.0, 0.0]), vectors([2.0, 0.0]), 0.0),
        ("embedding", vectors([1.0, 0.0]), vectors([0.0, 1.0]), 1.0),
        ("embedding", vectors([1.0, 0.0]), vectors([-1.0, 0.0]), 1.0),
        ("embedding", vectors([1.0]), vectors([1.0], [1.0]), None),
        ("embedding", vectors([1.0]), vectors([1.0, 2.0]), None),
        ("embedding", vectors([0.0]), vectors([1.0]), None),
        ("embedding", chat("x"), chat("x"), None),
        ("greedy", vectors([1.0]), vectors([1.0]), None),
        ("labels", vectors([1.0]), vectors([1.0]), None),
        (
            "labels",
            {"results": [{"flagged": True, "categories": {"a": True, "b": False}}]},
            {"results": [{"flagged": True, "categories": {"b": True, "a": False}}]},
            1.0,
        ),
        ("judge:mine", chat("x"), chat("x"), None),
    ],
)
def test_answers_differ_by_what_suits_the_class(
    compare: str, one: object, other: object, expected: float | None
) -> None:
    found = between(compare, one, other)
    assert found == pytest.approx(expected) if expected is not None else found is None
    assert between(compare, other, one) == found


@pytest.mark.parametrize("body", FLAWED)
def test_what_is_no_answer_has_nothing_to_compare(body: object) -> None:
    assert excerpt(body) is None


@PROPERTY
@given(st.sampled_from(sorted(COMPARISONS)), st.text(), st.text())
def test_a_difference_is_within_0_and_1_and_an_answer_is_as_itself(
    compare: str, one: str, other: str
) -> None:
    found = between(compare, chat(one), chat(other))
    assert found is None or 0.0 <= found <= 1.0
    assert between(compare, chat(one), chat(one)) in (None, 0.0)


@pytest.mark.parametrize(
    ("body", "operation", "compare", "expected"),
    [
        ({"temperature": 0}, "chat", "greedy", True),
        ({"temperature": 0.7}, "chat", "greedy", False),
        ({}, "chat", "tokens", False),
        ({}, "chat", "labels", True),
        ({"n": 2}, "chat", "labels", False),
        ({}, "embeddings", "embedding", True),
        ({"encoding_format": "base64"}, "embeddings", "embedding", False),
        ({}, "chat", "embedding", False),
        ({}, "embeddings", "labels", False),
        ({}, "chat", "judge:mine", True),
    ],
)
def test_only_what_can_be_expected_to_agree_is_compared(
    body: dict[str, Any], operation: str, compare: str, expected: object
) -> None:
    assert is_comparable(body, operation, compare) is expected


class TestBets:
    @PROPERTY
    @given(
        st.lists(st.floats(0, 1), max_size=60),
        st.floats(0.01, 0.99),
        st.sampled_from([drift_wealth, sound_wealth]),
    )
    def test_wealth_is_never_negative_and_never_beyond_all_bounds(
        self, differences: list[float], within: float, bet: Any
    ) -> None:
        wealth: tuple[float, ...] = ()
        for n, x in enumerate(differences):
            wealth = bet(wealth, n, x, within)
        assert all(0.0 <= each < 1e13 for each in wealth)

    @PROPERTY
    @given(
        st.lists(st.floats(0, 1), max_size=20),
        st.floats(0.05, 0.95),
        st.sampled_from([drift_wealth, sound_wealth]),
    )
    def test_where_the_hypothesis_holds_wealth_and_what_is_not_staked_are_not_expected_to_grow(
        self, before: list[float], within: float, bet: Any
    ) -> None:
        """A coin whose mean is just what is allowed: the fair game, after whatever came before."""
        wealth: tuple[float, ...] = ()
        for n, x in enumerate(before):
            wealth = bet(wealth, n, x, within)
        n = len(before)
        heads, tails = bet(wealth, n, 1.0, within), bet(wealth, n, 0.0, within)
        expected = [within * h + (1 - within) * t for h, t in zip(heads, tails, strict=True)]
        had = wealth or (0.0,) * len(expected)
        unstaked_before, unstaked_after = 1 / (n + 1), 1 / (n + 2)
        for mean, was in zip(expected, had, strict=True):
            assert mean + unstaked_after <= (was + unstaked_before) * (1 + 1e-9)

    def test_a_sound_variant_is_seldom_ever_called_drifted_however_often_one_looks(self) -> None:
        called = sum(self._found(0.2, 0.2, 1_000, seed) is not None for seed in range(200))
        assert called <= 200 * ALPHA + 3

    def test_a_broken_one_is_found_soon_and_late_changes_are_too(self) -> None:
        soon = [self._found(0.5, 0.2, 200, seed) for seed in range(30)]
        assert all(each is not None and each <= 120 for each in soon)
        late = [self._found(0.5, 0.2, 3_000, seed, after=2_000) for seed in range(10)]
        assert all(each is not None and 2_000 < each <= 2_300 for each in late)

    @staticmethod
    def _found(mean: float, within: float, looks: int, seed: int, after: int = 0) -> int | None:
        draw, wealth = random.Random(seed), ()
        for n in range(looks):
            x = float(draw.random() < (mean if n >= after else within / 4))
            wealth = drift_wealth(wealth, n, x, within)  # type: ignore[assignment]
            if is_won(wealth, alpha_of(1)):
                return n + 1
        return None

    def test_all_episodes_together_spend_no_more_than_alpha(self) -> None:
        assert sum(alpha_of(n) for n in range(1, 10_000)) <= ALPHA


def sample(x: float | None, **changes: Any) -> Comparison:
    at = Comparison("s", "r", 5.0, "chat", "p", "v", "ref", "labels", 0.2, x, 0.0)
    return replace(at, **changes)


def after(state: VariantQuality, *differences: float | None) -> VariantQuality:
    for x in differences:
        state = judge(state, sample(x))
    return state


class TestVerdicts:
    def test_it_is_open_then_as_the_reference_then_drifted_then_passes(self) -> None:
        state = begun(sample(0.0))
        assert after(state, 0.0).verdict == "open"
        sound = after(state, *[0.0] * 100)
        assert sound.verdict == "as_reference"
        drifted = after(sound, *[1.0] * 30)
        assert (drifted.verdict, drifted.episode) == ("drifted", 1)
        assert after(drifted, *[1.0] * 500).verdict == "drifted"
        again = after(drifted, *[0.0] * 150)
        assert (again.verdict, again.episode) == ("as_reference", 2)
        assert again.samples == 280
        assert after(again, *[1.0] * 30).verdict == "drifted"

    def test_one_that_still_differs_does_not_pass(self) -> None:
        drifted = after(begun(sample(0.0)), *[1.0] * 30)
        draw = random.Random(1)
        still = after(drifted, *[float(draw.random() < 0.3) for _ in range(1000)])
        assert still.verdict == "drifted"

    def test_what_cannot_be_compared_counts_for_nothing(self) -> None:
        state = after(begun(sample(0.0)), *[None] * 50)
        assert (state.samples, state.uncompared, state.verdict) == (0, 50, "open")

    def test_classes_are_told_apart_and_share_the_test(self) -> None:
        state = begun(sample(0.0))
        state = judge(judge(state, sample(1.0)), sample(0.5, task="bulk", within=0.6))
        assert {name: t.difference for name, t in state.classes.items()} == {"chat": 1, "bulk": 0.5}
        assert (state.samples, state.recent) == (2, 0.75)


def labelled(shares: dict[int, tuple[float, float]], seed: int) -> Iterator[Comparison]:
    """Yield comparisons of labels: by group how often it comes up, and how often it differs."""
    draw = random.Random(seed)
    while True:
        (group,) = draw.choices([*shares], [often for often, _ in shares.values()])
        x = float(draw.random() < shares[group][1])
        yield sample(x, within=0.1, answer_group=group)


def called(samples: Iterable[Comparison]) -> tuple[int, VariantQuality] | None:
    """Return after how many comparisons a variant is called drifted, and the state then."""
    state = begun(sample(0.0))
    for n, each in enumerate(samples, 1):
        state = judge(state, each)
        if state.verdict == "drifted":
            return n, state
    return None


class TestOneAnswer:
    """A limit holds for each answer of the reference, not for all of them together alone."""

    def test_stakes_are_no_more_than_the_wealth(self) -> None:
        groups = sum(group_stake(place) for place in range(1, GROUPS_TESTED + 1))
        assert ALL_STAKE + groups == pytest.approx(1.0)

    def test_one_of_two_labels_that_is_often_wrong_is_found(self) -> None:
        """As measured of the broken variant (docs/quality.md): 14 % in all, the limit being 10."""
        broken = {3: (0.74, 0.05), 40: (0.26, 0.4)}
        found = [called(islice(labelled(broken, seed), 200)) for seed in range(100)]
        known = [each for each in found if each is not None]
        assert len(known) >= 85
        # Now and then enough of the other label differ, by chance, for all to show it first.
        assert sum(state.drifted_in == "40" for _, state in known) >= 75

    def test_a_rare_label_that_is_never_said_is_found_far_below_the_limit_of_all(self) -> None:
        mute = {1: (0.95, 0.0), 2: (0.05, 1.0)}
        found = [called(islice(labelled(mute, seed), 400)) for seed in range(30)]
        assert all(each is not None and each[1].drifted_in == "2" for each in found)

    @pytest.mark.slow
    def test_a_variant_within_the_limit_for_each_label_is_seldom_ever_called_drifted(self) -> None:
        """At the limit itself: each sample is as likely to differ as is allowed."""
        sound = dict.fromkeys(range(5), (0.2, 0.1))
        found = [called(islice(labelled(sound, seed), 1_000)) for seed in range(100)]
        assert sum(each is not None for each in found) <= 100 * ALPHA + 3

    def test_it_passes_by_the_answers_that_showed_it(self) -> None:
        state = begun(sample(0.0))
        for n in range(40):
            state = judge(state, sample(float(n % 2), within=0.2, answer_group=n % 2))
        assert (state.verdict, state.drifted_in) == ("drifted", "1")
        right, wrong = (sample(0.0, within=0.2, answer_group=group) for group in (0, 1))
        for _ in range(500):
            state = judge(state, right)
        assert state.verdict == "drifted"
        again = next(n for n in count() if (state := judge(state, wrong)).verdict != "drifted")
        assert 20 < again < 200
        assert (state.verdict, state.groups, state.drifted_in) == ("as_reference", {}, None)

    def test_answers_beyond_the_first_few_count_in_all_together_alone(self) -> None:
        state = begun(sample(0.0))
        for group in range(GROUPS_TESTED + 3):
            state = judge(state, sample(0.0, answer_group=group))
        assert len(state.groups) == GROUPS_TESTED
        assert [each.place for each in state.groups.values()] == [*range(1, GROUPS_TESTED + 1)]
        assert (state.samples, state.drift_samples) == (GROUPS_TESTED + 3,) * 2

    def test_a_group_is_that_of_label_tools_and_flags(self) -> None:
        def group(compare: str, body: Any, task: str = "chat") -> int | None:
            answer = excerpt(body)
            assert answer is not None
            return answer_group(compare, task, answer)

        assert group("labels", chat("Positive.")) == group("labels", chat(" positive"))
        texts = {group("labels", chat(f"label {n}")) for n in range(400)}
        assert texts == set(range(GROUPS))
        assert group("labels", chat("a")) != group("labels", chat("a"), "bulk")
        tools = [group("tool_calls", chat(t, ("f", a))) for t, a in (("x", "{}"), ("y", '{"a":1}'))]
        assert tools[0] == tools[1] != group("tool_calls", chat("x", ("g", "{}")))
        flagged = [{"results": [{"flagged": each, "categories": {}}]} for each in (True, False)]
        assert group("labels", flagged[0]) != group("labels", flagged[1])
        assert group("tokens", chat("a")) is None


def test_the_share_depends_on_the_id_alone_and_is_even() -> None:
    shares = [share_of(f"r-{n}") for n in range(2_000)]
    assert shares == [share_of(f"r-{n}") for n in range(2_000)]
    assert 0.08 < sum(each < 0.1 for each in shares) / 2_000 < 0.12
    assert len({second_id(f"r-{n}", "reference") for n in range(100)}) == 100
    assert second_id("r", "reference") != second_id("r", "judged")


WATCH = (
    "watch: {reference: llama-bf16, share: 0.1, compare: labels, within: 0.2,"
    " budget_usd_per_day: 1}"
)


def watched(watch: str) -> str:
    return POLICY.replace("output_tokens: 200}", f"output_tokens: 200, {watch}}}", 1)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("labels", "luck"), "compare"),
        (("share: 0.1", "share: 0"), "share"),
        (("within: 0.2", "within: 1"), "within"),
        (("compare: labels", 'compare: "judge:"'), "compare"),
    ],
)
def test_a_watch_that_cannot_work_is_refused(change: tuple[str, str], field: str) -> None:
    with pytest.raises(DeclarationError, match=rf"classes\.chat\.watch\.{field}"):
        a_policy(watched(WATCH.replace(*change)))


def test_a_policy_without_a_watch_keeps_its_version() -> None:
    explicit = POLICY.replace("output_tokens: 200}", "output_tokens: 200, minds_drift: true}", 1)
    assert a_policy(explicit).version == a_policy().version
    assert "minds_drift" not in a_policy().model_dump_json()
    assert a_policy(watched(WATCH)).version != a_policy().version


def test_a_reference_that_nobody_serves_is_told() -> None:
    from policy_cases import FLEET

    fleet = parse_fleet(FLEET, "fleet.yaml")
    good, bad = watched(WATCH), watched(WATCH.replace("llama-bf16", "llama-fp32"))
    told = "class chat: its watch has the reference llama-fp32, not served by any pool"
    assert told in review(fleet, some_options(), a_policy(bad))
    assert not any("watch" in each for each in review(fleet, some_options(), a_policy(good)))
