"""Quotes: exact prices, chances that are told, and menus that the decision would keep."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_cases import POLICY, START, Yard, make_policy, make_profile

from policies.config.quotes import PromiseErrors
from policies.config.schema import DeclarationError
from policies.placement.decide import decide
from policies.placement.inputs import inputs_of
from policies.placement.quoting import PricedOffer, bound_to, menu, price_nano
from policies.scoring.estimate import Visit, estimates, spread_of
from policies.scoring.promises import chance_within, errors_of, promised_chances, times_for
from topics import Profile, Quoted
from topics.records.money import NANO
from topics.records.quote_terms import charge

ERRORS = """
quotes:
  valid_s: 60
  margin: 0.5
  errors:
    any:
      direct: [[0.5, 0.0], [0.9, 0.5], [0.95, 0.7], [0.99, 1.2]]
      hold: [[0.5, -0.4], [0.95, 0.1], [0.99, 0.2]]
"""
usd = st.floats(0, 1e5, allow_nan=False)


@given(usd, st.floats(0, 100), st.none() | usd)
def test_a_price_is_the_cost_with_its_margin_rounded_up(
    cost_usd: float, margin: float, limit_usd: float | None
) -> None:
    nano = price_nano(cost_usd, margin, limit_usd)
    exact = Fraction(cost_usd) * (1 + Fraction(margin)) * NANO
    if limit_usd is None:
        assert exact <= nano < exact + 1
    else:
        assert nano <= Fraction(limit_usd) * NANO
        assert nano < exact + 1


@given(st.integers(0, 10**18), st.integers(-(10**6), 10**18))
def test_nobody_pays_more_than_was_quoted_nor_than_it_cost(quoted: int, cost: int) -> None:
    paid = charge(Quoted("q", quoted, 0.99), cost)
    assert 0 <= paid.charged_nano_usd <= quoted
    assert paid.charged_nano_usd <= max(0, cost)
    assert paid.charged_nano_usd in (quoted, max(0, cost))
    assert (paid.quoted_nano_usd, paid.cost_nano_usd) == (quoted, cost)


points = st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(-3, 3)), min_size=1, max_size=8).map(
    lambda found: tuple(
        (c, round(e, 6))
        for (c, e) in zip(
            sorted({round(c, 3) for c, _ in found}),
            sorted({round(e, 3) for _, e in found}),
            strict=False,
        )
    )
)


@given(points, st.floats(0.005, 0.98))
@settings(max_examples=300)
def test_the_time_for_a_chance_has_that_chance(
    known: tuple[tuple[float, float], ...], chance: float
) -> None:
    times = times_for(chance, known, 0.35)
    if chance > known[-1][0]:
        assert times == float("inf")
        assert chance_within(1e9, known, 0.35) == known[-1][0]
    else:
        assert chance_within(times, known, 0.35) == pytest.approx(chance, abs=1e-6)


@given(points, st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_more_time_is_never_a_smaller_chance(
    known: tuple[tuple[float, float], ...], first: float, second: float
) -> None:
    less, more = sorted((first, second))
    for each in (known, ()):
        assert chance_within(less, each, 0.35) <= chance_within(more, each, 0.35) <= 1.0


def offers_of(
    yard: Yard, profile: Profile, *deadlines: float, windows: tuple[float, ...] = ()
) -> list[PricedOffer]:
    found, _ = menu(
        lambda _: [profile], ["auto"], deadlines, windows, yard.situation(), yard.clock.at
    )
    return found


def test_errors_are_those_of_the_path_and_of_the_class_where_it_has_its_own() -> None:
    own = "    chat: {direct: [[0.5, 0.3]]}\n    any:\n"
    policy = make_policy(POLICY + ERRORS.replace("    any:\n", own))
    assert errors_of(policy, "chat", "direct") == ((0.5, 0.3),)
    assert errors_of(policy, "chat", "hold")[0] == (0.5, -0.4)
    assert errors_of(policy, "summarization", "direct")[0] == (0.5, 0.0)


@pytest.mark.parametrize("task", ["chat", "summarization"])
def test_a_menu_is_kept_by_the_decision_that_follows(task: str) -> None:
    yard = Yard(policy=POLICY + ERRORS)
    profile = make_profile(yard.policy, task=task)
    offers = offers_of(yard, profile)
    assert offers
    here = yard.situation()
    for offer in offers:
        assert offer.within_s is not None
        assert offer.deadline == pytest.approx(START + offer.within_s)
        assert offer.chance in (0.99, 0.95) or offer.chance > 0.9
        quoted = Quoted("q", offer.nano_usd[0], offer.chance)
        bound = bound_to(replace(profile, deadline=offer.deadline), quoted)
        decision = decide(bound, inputs_of(bound, here, START), here.options, here.policy, START)
        assert decision.promised is not None
        assert decision.promised.chance is not None
        assert decision.promised.chance >= offer.chance
        assert price_nano(decision.promised.cost_usd, 0.5) <= offer.nano_usd[0]


def test_what_is_surer_or_sooner_is_no_cheaper() -> None:
    yard = Yard(policy=POLICY + ERRORS)
    profile = make_profile(yard.policy, task="summarization")
    by_chance: dict[float, list[PricedOffer]] = {}
    for offer in offers_of(yard, profile):
        by_chance.setdefault(offer.chance, []).append(offer)
    for found in by_chance.values():
        ordered = sorted(found, key=lambda offer: offer.deadline)
        prices = [offer.nano_usd[0] for offer in ordered]
        assert prices == sorted(prices, reverse=True)
    assert any(len(found) > 1 for found in by_chance.values())


def test_a_deadline_is_promised_as_it_stands_when_the_quote_ends() -> None:
    yard = Yard(policy=POLICY + ERRORS)
    profile = make_profile(yard.policy, task="summarization")
    near, far = offers_of(yard, profile, START + 100), offers_of(yard, profile, START + 3000)
    assert {offer.valid_until for offer in near} == {START + 5}
    assert {offer.valid_until for offer in far} == {START + 60}
    assert max(o.nano_usd[0] for o in near) >= max(o.nano_usd[0] for o in far)
    assert not offers_of(yard, profile, START + 0.001)


def test_the_price_is_no_higher_than_the_request_allows() -> None:
    yard = Yard(policy=POLICY + ERRORS)
    plain = make_profile(yard.policy, task="summarization")
    cost = max(offer.nano_usd[0] for offer in offers_of(yard, plain)) / NANO / 1.5
    limited = replace(plain, max_cost_usd=cost * 1.1)
    assert max(offer.nano_usd[0] for offer in offers_of(yard, limited)) <= cost * 1.1 * NANO


def test_a_price_is_that_of_one_answer_and_of_as_many_as_are_asked_for() -> None:
    yard = Yard(policy=POLICY + ERRORS)
    profile, here = make_profile(yard.policy), yard.situation()

    def price(asked: Profile) -> int:
        (offer, *_), _ = menu(lambda _: [asked], ["auto"], [], [60.0], here, START)
        return offer.nano_usd[0]

    def promised_usd(asked: Profile) -> float:
        bound = replace(bound_to(asked, Quoted("q", 0, 0.9)), deadline=START + 60)
        decision = decide(bound, inputs_of(bound, here, START), here.options, here.policy, START)
        assert decision.promised is not None
        return decision.promised.cost_usd

    several = [replace(profile, replies=n) for n in (1, 3, 100)]
    prices = [price(each) for each in several]
    assert prices == [price_nano(promised_usd(each), 0.5) for each in several]
    assert prices[0] < prices[1] < prices[2]


def test_a_promise_counts_an_slo_only_where_its_class_would_miss_it_too_often() -> None:
    yard = Yard(policy=POLICY + ERRORS)
    here, plain = yard.situation(), make_profile(yard.policy)
    asked = bound_to(replace(plain, deadline=START + 1e5), Quoted("q", 0, 0.99))
    standing = here.view.standing(here.options.of("premium-us", "yard-8b-fp8"))
    visits: list[Visit] = [(standing, "direct", 1, 0.0, 0)]
    (figures,) = estimates(asked, visits, 0.0)
    assert yard.policy.classes["chat"].target_chance == 0.9
    for wanted, found in ((0.95, 0.99), (0.7, 0.7)):
        ttft_s = figures[1] * times_for(wanted, (), spread_of(standing, here.policy))
        each = replace(asked, ttft_s=ttft_s)
        assert promised_chances(each, visits, [figures], here.policy, START) == [
            pytest.approx(found)
        ]


def test_requests_of_a_question_are_quoted_beside_each_other() -> None:
    yard = Yard(policy=POLICY + ERRORS)
    profile = make_profile(yard.policy)
    many = [replace(profile, id=f"r{n}") for n in range(24)]

    def offers(profiles: list[Profile]) -> list[PricedOffer]:
        found, _ = menu(lambda _: profiles, ["auto"], [], [60.0], yard.situation(), START)
        return found

    (alone, *_), (together, *_) = offers(many[:1]), offers(many)
    assert len(together.nano_usd) == 24
    # What is to be one of 24 has less of its pool than one alone.
    assert together.chance < alone.chance or together.nano_usd[-1] != alone.nano_usd[0]


def test_a_quote_changes_no_situation() -> None:
    yard = Yard(policy=POLICY + ERRORS)
    here = yard.situation()
    before = {pool: repr(load) for pool, load in here.view.loads().items()}
    profile = make_profile(yard.policy, task="summarization")
    menu(lambda _: [profile] * 3, ["auto"], [], [], here, START)
    assert {pool: repr(load) for pool, load in here.view.loads().items()} == before


def test_what_no_pool_can_serve_is_refused_with_the_reason() -> None:
    yard = Yard(policy=POLICY + ERRORS)
    profile = make_profile(yard.policy, constraints={"regions": ["mars"]})
    offers, refusal = menu(lambda _: [profile], ["auto"], [START + 9], [], yard.situation(), START)
    assert not offers
    assert refusal is not None
    assert refusal.reason == "no_pool"


def test_a_pool_that_is_never_used_is_quoted_to_nobody() -> None:
    groups = "never: [{name: away, regions: [us-east]}, {name: dear, pools: [premium-eu]}]\n"
    free, yard = Yard(policy=POLICY + ERRORS), Yard(policy=POLICY + ERRORS + groups)
    for task in ("chat", "summarization"):
        profile = make_profile(yard.policy, task=task)
        assert offers_of(free, profile, START + 100)
        assert not offers_of(yard, profile, START + 100)


@pytest.mark.parametrize(
    "found", ["[[0.5, 0.1], [0.4, 0.2]]", "[[0.5, 0.2], [0.6, 0.1]]", "[[0.0, 0.1]]", "[[1, 0.1]]"]
)
def test_errors_that_do_not_grow_are_refused(found: str) -> None:
    with pytest.raises(DeclarationError, match=r"errors\.any"):
        make_policy(POLICY + f"quotes: {{errors: {{any: {{direct: {found}}}}}}}")


def test_a_policy_without_quotes_keeps_its_version() -> None:
    assert make_policy(POLICY).version == make_policy(POLICY + "quotes: {margin: 0.25}\n").version
    assert make_policy(POLICY).version != make_policy(POLICY + "quotes: {margin: 0.5}\n").version
    assert PromiseErrors().direct == ()
