"""The policy file: what is read, what is refused by name, and a replay's shorter times."""

from importlib import resources
from typing import Any

import pytest
from policy_cases import POLICY, a_policy

from policies import DeclarationError, Policy, parse_policy

PACKAGED = (resources.files("policies.defaults") / "policy.yaml").read_text()
NINE_CLASSES = {
    "chat",
    "long_context",
    "summarization",
    "code_planning",
    "synthetic_data",
    "embedding",
    "safety_classification",
    "audio_turn",
    "agent_step",
}
TIMES = {"ttft_ms", "tpot_ms", "deadline_s", "window_s", "longest_wait_s"}
TIMES |= {"margin_s", "room_wait_s", "backlog_s_max"}


@pytest.fixture(scope="module")
def packaged() -> Policy:
    return parse_policy(PACKAGED, "policy.yaml")


def test_the_packaged_policy_knows_the_nine_classes(packaged: Policy) -> None:
    assert set(packaged.classes) == NINE_CLASSES
    assert packaged.default_class == "chat"
    assert {"priority", "flex", "batch"} <= set(packaged.tiers)
    assert packaged.data_classes["regulated"].regions == ("eu-west",)


def test_packaged_classes_say_what_is_good_enough_and_what_goes_first_costs_more(
    packaged: Policy,
) -> None:
    floors = {name: each.quality_min for name, each in packaged.classes.items()}
    urgent = {name for name, each in packaged.classes.items() if each.latency_sensitive}
    assert None not in floors.values()
    assert {floors[name] for name in urgent} == {0.98, 0.99}
    factors = {name: each.price_factor for name, each in packaged.tiers.items()}
    assert factors == {"priority": 2.0, "flex": 1.0, "batch": 1.0}


def test_packaged_classes_do_not_contradict_themselves(packaged: Policy) -> None:
    for name, each in packaged.classes.items():
        assert each.latency_sensitive != each.batchable, name
        assert each.batchable == (each.window_s > 0), name
        assert each.latency_sensitive == (each.ttft_ms is not None), name
        assert each.longest_wait_s <= each.deadline_s, name
        assert each.window_s + packaged.windows.margin_s < each.deadline_s, name


def numbers(node: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The leaves of a policy by their paths."""
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, each in node.items() for k, v in numbers(each, (*path, key)).items()}


@pytest.mark.parametrize("text", [PACKAGED, POLICY])
@pytest.mark.parametrize("factor", [10, 0.5, 60.0])
def test_a_replay_divides_every_time_and_nothing_else(text: str, factor: float) -> None:
    policy = parse_policy(text, "policy.yaml")
    before, after = numbers(policy.model_dump()), numbers(policy.faster(factor).model_dump())
    assert before.keys() == after.keys()
    divided = 0
    for path, value in before.items():
        if path[-1] in TIMES and value is not None:
            divided += 1
            assert after[path] == pytest.approx(value / factor), path
        elif path == ("windows", "prior_rate_per_s"):
            # Requests come more often by as much as times are shorter.
            assert after[path] == pytest.approx(value * factor)
        else:
            assert after[path] == value, path
    assert divided > 10


def test_a_replay_at_its_own_speed_is_the_same_policy(packaged: Policy) -> None:
    assert packaged.faster(1) == packaged
    assert packaged.faster(1).version == packaged.version


def test_a_class_may_be_called_like_a_time() -> None:
    policy = a_policy(POLICY.replace("  bulk:", "  window_s:"))
    assert policy.faster(2).classes["window_s"].window_s == 15


def test_the_version_is_that_of_the_content() -> None:
    policy = a_policy()
    assert a_policy("# a comment\n" + POLICY).version == policy.version
    assert a_policy(POLICY.replace("ttft_ms: 1000", "ttft_ms: 1001")).version != policy.version
    assert policy.faster(2).version != policy.version


@pytest.mark.parametrize(
    ("old", "new", "field", "value", "message"),
    [
        ("batchable: false, ttft", "ttft", "classes.chat.batchable", "", "missing"),
        ("ttft_ms: 1000", "ttft_ms: 0", "classes.chat.ttft_ms", "0", "greater than 0"),
        ("ttft_ms: 1000", "ttft_ms: -5", "classes.chat.ttft_ms", "-5", "greater than 0"),
        ("ttft_ms: 1000", "ttft_ms: .inf", "classes.chat.ttft_ms", "inf", "finite"),
        ("ttft_ms: 1000", "tftt_ms: 1000", "classes.chat.tftt_ms", "1000", "ttft_ms"),
        ("deadline_s: 60", "deadline_s: soon", "classes.chat.deadline_s", "'soon'", "number"),
        ("window_s: 30", "window_s: -1", "classes.bulk.window_s", "-1", "at least 0"),
        ("  chat:", "  Chat:", "classes.Chat", "'Chat'", "match"),
        ("  chat:", "  chatter:", "", "", "default_class 'chat'"),
        ("slo: false", "slo: maybe", "tiers.flex.slo", "'maybe'", "bool"),
        ("public: {}", "public: {region: [eu]}", "data_classes.public.region", "[1 item]",
         "regions"),
        ("regions: [eu-west]", "regions: eu", "data_classes.regulated.regions", "'eu'", "list"),
        ("members_max: 32", "members_max: 0", "windows.members_max", "0", "greater than 0"),
        ("margin_s: 1.0", "margin_s: -1", "windows.margin_s", "-1", "at least 0"),
        ("[512, 2048]", "[512, -1]", "windows.length_buckets_tokens[1]", "-1", "greater than 0"),
        ("classes:", "default_class: nobody\nclasses:", "", "", "default_class 'nobody'"),
        ("classes:", "attempts_max: 0\nclasses:", "attempts_max", "0", "greater than 0"),
        ("classes:", "estimates: {spread: 0}\nclasses:", "estimates.spread", "0", "greater than 0"),
        ("output_tokens: 0}", "output_tokens: 0, target_chance: 1}",
         "classes.embedding.target_chance", "1", "less than 1"),
    ],
)  # fmt: skip
def test_a_refusal_names_file_field_and_value(
    old: str, new: str, field: str, value: str, message: str
) -> None:
    assert old in POLICY
    with pytest.raises(DeclarationError) as caught:
        parse_policy(POLICY.replace(old, new, 1), "my-policy.yaml")
    problems = [each for each in caught.value.problems if each.field == field]
    assert problems, caught.value
    assert problems[0].file == "my-policy.yaml"
    assert message in problems[0].message
    if field:
        assert problems[0].value == value
    assert str(caught.value).startswith("my-policy.yaml: ")


@pytest.mark.parametrize("text", ["", "[]", "classes: {", "classes: {}", "classes: 5"])
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        parse_policy(text, "p.yaml")
    assert {each.file for each in caught.value.problems} == {"p.yaml"}


@pytest.mark.parametrize("buckets", ["[2048, 512]", "[512, 512]"])
def test_length_buckets_grow(buckets: str) -> None:
    with pytest.raises(DeclarationError, match="length_buckets_tokens"):
        a_policy(POLICY.replace("[512, 2048]", buckets))


def test_policies_are_frozen(packaged: Policy) -> None:
    with pytest.raises(ValueError, match="frozen"):
        packaged.classes["chat"].__setattr__("deadline_s", 1.0)
