"""An estimate of a reply refuses nobody: only the prompt and what the client declares are facts."""

from dataclasses import replace
from typing import Any

import pytest
from decisions import decide_in, target_in
from policy_cases import NOW, a_policy, a_situation, bulk, request

from policies import Member, tag
from policies.batching.groups import group_in
from policies.config.options import ModelOptions
from policies.scoring.constraints import certain_tokens
from topics import Profile

CONTEXT = 32_768
SITUATION = a_situation()


def profile_of(**fields: Any) -> Profile:
    return tag(
        request(**fields),
        a_policy(),
        received_at=NOW,
        now=NOW,
        ingest_partition=0,
        serving=SITUATION.options.serving["llama"],
    ).profile


@pytest.mark.parametrize(
    ("hints", "body", "action"),
    [
        ({"input_tokens": CONTEXT - 10}, {}, "place"),
        ({"input_tokens": CONTEXT}, {}, "place"),
        ({"input_tokens": CONTEXT + 1}, {}, "reject"),
        ({"input_tokens": CONTEXT - 10, "output_tokens": 10}, {}, "place"),
        ({"input_tokens": CONTEXT - 10, "output_tokens": 11}, {}, "reject"),
        ({"input_tokens": CONTEXT - 10}, {"max_tokens": 10}, "place"),
        ({"input_tokens": CONTEXT - 10}, {"max_tokens": 11}, "reject"),
        # Also where it is more than the reply that is expected.
        ({"input_tokens": CONTEXT - 4000}, {"max_tokens": 4000}, "place"),
        ({"input_tokens": CONTEXT - 4000}, {"max_tokens": 4001}, "reject"),
        ({"input_tokens": CONTEXT - 4000, "output_tokens": 9}, {"max_tokens": 4001}, "reject"),
        ({}, {"max_tokens": CONTEXT - 1}, "place"),
        ({}, {"max_tokens": CONTEXT}, "reject"),
    ],
)
def test_only_facts_are_held_against_the_context(
    hints: dict[str, int], body: dict[str, int], action: str
) -> None:
    found = profile_of(hints=hints, body={"model": "llama"} | body)
    decision = decide_in(found, SITUATION, NOW)
    assert decision.action == action
    if action == "reject":
        assert "context_too_long" in (decision.refusals or {}).values()


def test_a_prompt_of_a_length_that_is_estimated_does_not_count_beside_a_limit() -> None:
    text = "word " * 24_000
    prompt = profile_of(body={"model": "llama", "prompt": text}).input_tokens
    assert CONTEXT - 8_000 < prompt < CONTEXT
    filled = profile_of(body={"model": "llama", "prompt": text, "max_tokens": 8_000})
    assert decide_in(filled, SITUATION, NOW).action == "place"


def test_a_prompt_that_fits_everywhere_says_nothing_of_it() -> None:
    assert profile_of(hints={"input_tokens": 400}).certain_tokens is None


def test_an_estimate_that_only_the_memory_has_no_room_for_refuses_nobody() -> None:
    options = SITUATION.options.by_model["llama"]
    tight = ModelOptions(tuple(replace(option, kv_capacity_tokens=500) for option in options))
    found = tag(
        request(hints={"input_tokens": 400}),
        a_policy(),
        received_at=NOW,
        now=NOW,
        ingest_partition=0,
        serving=tight,
    ).profile
    assert certain_tokens(found) == 400


def test_a_batch_goes_where_the_longest_certain_member_fits() -> None:
    """Its members are told apart: one has a reply for certain, another an estimate of one."""
    guessed = bulk(id="guessed", input_tokens=CONTEXT - 50, certain_tokens=CONTEXT - 50)
    told = bulk(id="told", input_tokens=CONTEXT - 100, output_tokens=101)

    def held(*profiles: Profile) -> list[Member]:
        where = (SITUATION.options, SITUATION.policy)
        return [Member(each, group_in(each, *where), NOW, 0) for each in profiles]

    found = target_in(held(guessed), SITUATION, NOW)
    assert found is not None
    assert found.path == "batch"
    assert target_in(held(told), SITUATION, NOW) is None
    both = target_in(held(guessed, told), SITUATION, NOW)
    assert both is None or both.path == "direct"
