"""Tags: what is known of a request, where from, and how sure it is."""

from importlib import resources
from typing import Any

import pytest
from decisions import decide_in
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import (
    NOW,
    POLICY,
    PROPERTY,
    a_policy,
    a_situation,
    bulk,
    nobody_lives,
    profile,
    request,
    tagged,
)

from policies import Policy, UnservableError, decided_tags, operation_of, parse_policy, tag
from topics import Tag

CREATED_AT = NOW - 1
CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"
PACKAGED = parse_policy(
    (resources.files("policies.defaults") / "policy.yaml").read_text(), "policy.yaml"
)


def say(text: str, **body: Any) -> dict[str, Any]:
    return {"model": "llama", "messages": [{"role": "user", "content": text}]} | body


def parts(*content: dict[str, Any]) -> dict[str, Any]:
    return {"model": "llama", "messages": [{"role": "user", "content": list(content)}]}


@pytest.mark.parametrize("task", sorted(PACKAGED.classes))
def test_the_clients_class_is_believed(task: str) -> None:
    found = tagged(PACKAGED, task=task)
    workload = PACKAGED.classes[task]
    assert found.tags["task"] == Tag(task, "client", 1.0)
    assert found.profile.task == task
    assert found.profile.latency_sensitive == workload.latency_sensitive
    assert found.profile.batchable == workload.batchable
    assert found.profile.deadline == CREATED_AT + workload.deadline_s
    assert found.profile.window_s == workload.window_s
    assert found.profile.longest_wait_s == workload.longest_wait_s
    assert found.profile.output_tokens == workload.output_tokens
    assert found.profile.target_chance == workload.target_chance
    assert found.profile.precisions == workload.precisions
    ttft_ms = workload.ttft_ms
    assert found.profile.ttft_s == (None if ttft_ms is None else ttft_ms / 1000)


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({"url": "/v1/embeddings", "body": {"model": "v", "input": "a"}}, "embedding"),
        ({"url": "/v1/moderations", "body": {"model": "v", "input": "a"}}, "safety_classification"),
        ({"body": parts({"type": "input_audio", "input_audio": {}})}, "audio_turn"),
        ({"body": parts({"type": "text", "text": "a"}, {"type": "audio_url"})}, "audio_turn"),
        ({"body": say("a", tools=[{"type": "function"}])}, "agent_step"),
        ({"body": say("x" * 4 * 8192)}, "long_context"),
        ({"hints": {"input_tokens": 8192}}, "long_context"),
        ({"hints": {"input_tokens": 8191}}, "chat"),
        ({"body": say("x" * 40_000), "hints": {"input_tokens": 5}}, "chat"),
        ({"body": say("a", tools=[])}, "chat"),
    ],
)
def test_the_class_is_inferred_from_url_and_body(fields: dict[str, Any], task: str) -> None:
    found = tagged(PACKAGED, **fields)
    assert found.profile.task == task
    expected_source = "policy" if task == "chat" else "estimate"
    assert found.tags["task"].source == expected_source
    assert 0 < found.tags["task"].confidence < 1


def test_a_guess_that_the_policy_does_not_know_gives_way_to_the_next() -> None:
    # There is no audio_turn and no agent_step in this policy.
    found = tagged(body=parts({"type": "input_audio"}) | {"tools": [1]})
    assert found.tags["task"] == Tag("chat", "policy", 0.5)


def test_an_unknown_class_cannot_be_served() -> None:
    with pytest.raises(
        UnservableError, match="'dance' is not a class of the policy: chat"
    ) as caught:
        tagged(task="dance")
    assert caught.value.code == "unknown_task"


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"body": say("x" * 400)}, 104),
        ({"body": {"model": "m", "prompt": "x" * 401}}, 101),
        ({"url": EMBED, "body": {"model": "m", "input": ["x" * 8, "x" * 8]}}, 4),
        ({"url": EMBED, "body": {"model": "m", "input": [1, 2, 3]}}, 3),
        ({"url": EMBED, "body": {"model": "m", "input": [[1, 2], [3]]}}, 3),
        ({"body": parts({"type": "text", "text": "x" * 40}, {"type": "image_url"})}, 4 + 10 + 512),
        ({"body": {"model": "m"}}, 1),
        ({"body": {"model": "m", "messages": [{"role": "user"}, 5, {"content": None}]}}, 12),
        ({"body": {"model": "m", "messages": "x" * 40, "prompt": "x" * 8}}, 2),
    ],
)
def test_the_length_of_the_prompt_is_estimated(fields: dict[str, Any], tokens: int) -> None:
    found = tagged(**fields)
    assert found.profile.input_tokens == tokens
    assert found.tags["context_length"] == Tag(tokens, "estimate", 0.6)


def test_hints_win_over_every_estimate() -> None:
    hints = {"input_tokens": 7, "output_tokens": 9}
    found = tagged(body=say("x" * 4000, max_tokens=3), hints=hints)
    assert found.tags["context_length"] == Tag(7, "client", 1.0)
    assert found.tags["output_length"] == Tag(9, "client", 1.0)
    assert (found.profile.input_tokens, found.profile.output_tokens) == (7, 9)
    embedding = {"url": "/v1/embeddings", "hints": {"output_tokens": 2}}
    assert tagged(**embedding).profile.output_tokens == 2


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, Tag(200, "policy", 0.4)),
        ({"body": say("a", max_tokens=50)}, Tag(50, "client", 0.7)),
        ({"body": say("a", max_completion_tokens=60, max_tokens=50)}, Tag(60, "client", 0.7)),
        ({"body": say("a", max_tokens=5000)}, Tag(200, "policy", 0.4)),
        ({"url": "/v1/embeddings"}, Tag(0, "estimate", 1.0)),
    ],
)
def test_the_length_of_the_reply(fields: dict[str, Any], found: Tag) -> None:
    assert tagged(**fields).tags["output_length"] == found


@pytest.mark.parametrize(
    ("fields", "deadline"),
    [
        ({}, CREATED_AT + 60),
        ({"created_at": NOW - 30}, NOW + 30),
        ({"deadline": NOW + 5}, NOW + 5),
        ({"deadline": NOW - 5}, NOW - 5),
        ({"completion_window": "10m"}, CREATED_AT + 600),
        ({"completion_window": "10m", "created_at": NOW - 30}, NOW + 570),
        ({"service_tier": "flex"}, CREATED_AT + 1800),
        ({"service_tier": "flex", "completion_window": "2h"}, CREATED_AT + 7200),
        ({"task": "bulk"}, CREATED_AT + 3600),
    ],
)
def test_the_deadline(fields: dict[str, Any], deadline: float) -> None:
    found = tagged(**fields)
    assert found.profile.deadline == deadline
    told = found.tags["latency_sensitivity"].value["deadline_s"]
    assert told == pytest.approx(deadline - found.profile.created_at)


@pytest.mark.parametrize(
    ("fields", "sensitive", "batchable", "ttft_s"),
    [
        ({"task": "chat"}, True, False, 1.0),
        ({"task": "bulk"}, False, True, None),
        ({"task": "chat", "service_tier": "flex"}, False, True, None),
        ({"task": "bulk", "service_tier": "priority"}, True, False, None),
        ({"task": "chat", "service_tier": "default"}, True, False, 1.0),
        ({"task": "chat", "service_tier": "batch"}, True, False, 1.0),  # not in this policy
        ({"task": "bulk", "slo": {"ttft_ms": 250}}, True, False, 0.25),
        ({"task": "chat", "slo": {"ttft_ms": 250}, "service_tier": "flex"}, True, False, 0.25),
        ({"task": "bulk", "hints": {"batchable": False}}, False, False, None),
        ({"task": "chat", "hints": {"batchable": False}}, True, False, 1.0),
        ({"task": "chat", "hints": {"batchable": True}}, False, True, None),
        ({"task": "bulk", "slo": {"tpot_ms": 9}, "hints": {"batchable": True}}, True, False, None),
        ({"task": "bulk", "service_tier": "priority", "hints": {"batchable": True}}, True, False,
         None),
        ({"task": "bulk", "body": say("a", stream=True)}, False, False, None),
        ({"task": "bulk", "body": say("a", stream=False)}, False, True, None),
    ],
)  # fmt: skip
def test_who_waits_and_who_does_not(
    fields: dict[str, Any], sensitive: bool, batchable: bool, ttft_s: float | None
) -> None:
    found = tagged(**fields)
    assert found.profile.latency_sensitive is sensitive
    assert found.profile.batchable is batchable
    assert found.profile.ttft_s == ttft_s
    assert found.tags["batchability"].value is batchable
    assert found.tags["latency_sensitivity"].value["direct"] is sensitive
    assert not (sensitive and batchable)


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({"task": "bulk"}, "policy"),
        ({"task": "bulk", "service_tier": "flex"}, "client"),
        ({"task": "bulk", "hints": {"batchable": False}}, "client"),
        ({"task": "bulk", "body": say("a", stream=True)}, "client"),
    ],
)
def test_where_batchability_comes_from(fields: dict[str, Any], source: str) -> None:
    assert tagged(**fields).tags["batchability"].source == source


def test_a_tier_may_drop_the_slo_of_the_class_and_nothing_else() -> None:
    policy = a_policy(POLICY.replace("tiers:", "tiers:\n  default: {slo: false}"))
    plain, without = tagged(policy).profile, tagged(policy, service_tier="default").profile
    assert (plain.ttft_s, plain.tpot_s) == (1.0, 0.1)
    assert (without.ttft_s, without.tpot_s) == (None, None)
    assert without.latency_sensitive
    assert without.deadline == plain.deadline
    own = tagged(policy, service_tier="default", slo={"ttft_ms": 250}).profile
    assert (own.ttft_s, own.tpot_s) == (0.25, None)


def test_a_tier_changes_the_waits() -> None:
    plain, flex = tagged().profile, tagged(service_tier="flex").profile
    assert (plain.window_s, plain.longest_wait_s, plain.tier) == (0.0, 20.0, "auto")
    assert (flex.window_s, flex.longest_wait_s, flex.tier) == (20.0, 900.0, "flex")


@pytest.mark.parametrize(
    ("constraints", "regions", "precisions", "labels"),
    [
        ({}, None, None, {}),
        ({"regions": ["b", "a", "b"]}, ("a", "b"), None, {}),
        ({"regions": []}, (), None, {}),
        ({"precisions": ["fp8"]}, None, ("fp8",), {}),
        ({"labels": {"x": "1"}}, None, None, {"x": "1"}),
        ({"data_class": "public"}, None, None, {}),
        ({"data_class": "regulated"}, ("eu-west",), ("bf16", "fp8"), {"operator": "acme"}),
        ({"data_class": "regulated", "regions": ["us-east", "eu-west"]}, ("eu-west",),
         ("bf16", "fp8"), {"operator": "acme"}),
        ({"data_class": "regulated", "regions": ["us-east"]}, (), ("bf16", "fp8"),
         {"operator": "acme"}),
        ({"data_class": "regulated", "precisions": ["fp8", "int8"]}, ("eu-west",), ("fp8",),
         {"operator": "acme"}),
        ({"data_class": "regulated", "labels": {"x": "1", "operator": "acme"}}, ("eu-west",),
         ("bf16", "fp8"), {"x": "1", "operator": "acme"}),
    ],
)  # fmt: skip
def test_a_data_class_adds_to_the_requests_constraints(
    constraints: dict[str, Any],
    regions: tuple[str, ...] | None,
    precisions: tuple[str, ...] | None,
    labels: dict[str, str],
) -> None:
    found = tagged(constraints=constraints).profile
    assert found.regions == regions
    assert found.precisions == precisions
    assert found.labels == labels
    assert found.data_class == constraints.get("data_class")


def test_where_locality_and_precision_come_from() -> None:
    def sources(**constraints: Any) -> tuple[str, str]:
        tags = tagged(constraints=constraints).tags
        return tags["data_locality"].source, tags["quantization_tolerance"].source

    assert sources() == ("policy", "policy")
    assert sources(regions=["eu-west"]) == ("client", "policy")
    assert sources(precisions=["fp8"]) == ("policy", "client")
    assert sources(regions=["eu-west"], data_class="regulated") == ("policy", "policy")


def test_a_class_that_tolerates_few_precisions_gives_way_to_the_client() -> None:
    assert tagged(task="planning").profile.precisions == ("bf16", "fp8")
    own = tagged(task="planning", constraints={"precisions": ["int8"]}).profile
    assert own.precisions == ("int8",)


def test_labels_that_contradict_the_data_class_cannot_be_served() -> None:
    constraints = {"data_class": "regulated", "labels": {"operator": "other"}}
    with pytest.raises(UnservableError, match=r"operator=other.*requires operator=acme") as caught:
        tagged(constraints=constraints)
    assert caught.value.code == "conflicting_labels"


def test_an_unknown_data_class_cannot_be_served() -> None:
    with pytest.raises(UnservableError, match="'secret' is not in the policy: regulated") as caught:
        tagged(constraints={"data_class": "secret"})
    assert caught.value.code == "unknown_data_class"
    without = a_policy(POLICY[: POLICY.index("data_classes:")])
    with pytest.raises(UnservableError, match="none"):
        tagged(without, constraints={"data_class": "regulated"})


def test_everything_else_is_carried_over() -> None:
    found = tagged(
        id="r7",
        tenant="acme",
        model="other",
        session="s",
        constraints={"pools": ["b", "a"], "exclude_pools": ["c"], "max_cost_usd": 0.5},
        slo={"tpot_ms": 30},
    ).profile
    assert (found.id, found.tenant, found.model, found.session) == ("r7", "acme", "other", "s")
    assert (set(found.pools or ()), found.exclude_pools) == ({"a", "b"}, ("c",))
    assert (found.max_cost_usd, found.tpot_s, found.ttft_s) == (0.5, 0.03, 1.0)
    assert (found.routed_at, found.ingest_partition, found.created_at) == (NOW, 3, CREATED_AT)
    assert (found.attempt, found.fallbacks) == (1, ())


@pytest.mark.parametrize(
    ("url", "operation"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "completions"),
        ("/v1/embeddings", "embeddings"),
        ("/v1/moderations", "moderations"),
    ],
)
def test_the_operation_of_a_url(url: str, operation: str) -> None:
    assert operation_of(url) == operation
    assert tagged(url=url).profile.operation == operation


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("/v1/responses", "with `messages` in place of `input`"),
        ("/v1/messages", "Anthropic's"),
        ("/v1/audio/transcriptions", "input_audio"),
        ("/v1/audio/speech", "no pool makes speech"),
        ("/own/path", "/v1/chat/completions, /v1/completions"),
    ],
)
def test_an_operation_of_no_pool_is_refused_by_name_with_what_to_do(url: str, told: str) -> None:
    with pytest.raises(UnservableError, match=f"^{url} is not served: ") as caught:
        tagged(url=url)
    assert caught.value.code == "operation_not_served"
    assert told in caught.value.message


@pytest.mark.parametrize("given", ["a", ["a"], [1], [{"role": "user", "content": "a"}], None])
def test_input_alone_is_taken_for_no_chat(given: Any) -> None:
    with pytest.raises(UnservableError, match="say its `url`, /v1/embeddings") as caught:
        tagged(body={"model": "m", "input": given})
    assert caught.value.code == "operation_not_served"
    assert tagged(body={"model": "m", "input": given}, url=EMBED).profile.operation == "embeddings"
    assert tagged(body=say("a") | {"input": given}).profile.operation == "chat"


def test_seven_tags_come_before_the_decision_and_two_with_it() -> None:
    found = tagged()
    where = a_situation()
    decision = decide_in(found.profile, where, NOW)
    tags = found.tags | decided_tags(found.profile, decision, where.options, NOW)
    assert set(tags) == {
        "task",
        "context_length",
        "output_length",
        "batchability",
        "latency_sensitivity",
        "data_locality",
        "quantization_tolerance",
        "memory_footprint",
        "fallback_risk",
    }
    for name, each in tags.items():
        assert each.source in {"client", "policy", "estimate"}, name
        assert 0 < each.confidence <= 1, name


def test_the_memory_footprint_is_cache_and_weights() -> None:
    where = a_situation()
    chat = profile(input_tokens=100, output_tokens=50)
    footprint = decided_tags(chat, decide_in(chat, where, NOW), where.options, NOW)[
        "memory_footprint"
    ]
    assert footprint.value["kv_bytes"] == 150 * 2 * 8 * 128 * 32 * 2
    assert footprint.value["weights_bytes"] == {
        "llama-bf16": 16_000_000_000,
        "llama-fp8": 8_000_000_000,
        "llama-int8": 8_000_000_000,
    }


def test_the_fallback_risk_grows_as_the_slack_shrinks() -> None:
    where = a_situation("premium")

    def risk(slack_s: float) -> float:
        chat = profile(deadline=NOW + slack_s)
        decision = decide_in(chat, where, NOW)
        assert decision.estimate is not None
        value = decided_tags(chat, decision, where.options, NOW)["fallback_risk"].value
        assert value == pytest.approx(2 * decision.estimate.finish_s / slack_s, abs=1e-4)
        return float(value)

    assert risk(60) < risk(5) < 1 < risk(1)


def test_what_is_not_placed_has_no_fallback_risk() -> None:
    where = nobody_lives()
    held = decide_in(bulk(), where, NOW)
    assert set(decided_tags(bulk(), held, where.options, NOW)) == {"memory_footprint"}
    unknown = profile(model="nobody")
    rejected = decide_in(unknown, where, NOW)
    tags = decided_tags(unknown, rejected, where.options, NOW)
    assert tags["memory_footprint"].value == {"kv_bytes": 0, "weights_bytes": {}}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "input_audio"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("llama")},
    optional={
        "messages": st.lists(st.fixed_dictionaries({}, optional={"content": JSON}) | JSON) | JSON,
        "prompt": JSON,
        "input": JSON,
        "tools": JSON,
        "stream": st.booleans() | st.none(),
        "max_tokens": st.integers(1, 10) | st.none(),
    },
)


@settings(PROPERTY)
@given(
    body=BODIES,
    url=st.sampled_from([CHAT, EMBED, "/v1/moderations"]),
)
def test_any_body_has_its_tags(body: dict[str, Any], url: str) -> None:
    if url == CHAT and "input" in body and not {"messages", "prompt"} & body.keys():
        url = EMBED
    found = tagged(PACKAGED, body=body, url=url)
    assert found.profile.task in PACKAGED.classes
    assert found.profile.input_tokens >= 1
    assert found.profile.output_tokens >= 0
    assert found == tagged(PACKAGED, body=body, url=url)


def deep(levels: int) -> Any:
    content: Any = "x" * 4
    for _ in range(levels):
        content = [content]
    return content


def test_a_body_as_deep_as_the_parser_lets_through_has_its_tags() -> None:
    assert tagged(body={"model": "m", "prompt": deep(250)}).profile.input_tokens == 1


@pytest.mark.parametrize("odd", [[], {}, None, 5, ["input_audio"]])
def test_a_part_of_an_odd_type_is_no_audio(odd: Any) -> None:
    assert tagged(PACKAGED, body=parts({"type": odd})).profile.task == "chat"


def test_tagging_has_no_other_inputs() -> None:
    policy: Policy = a_policy()
    one, two = (
        tag(request(), policy, received_at=NOW, now=NOW, ingest_partition=0) for _ in range(2)
    )
    assert one == two
