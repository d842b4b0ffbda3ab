"""The packaged traffic, and its rows as requests that the packaged fleet can serve."""

from policies import compile_options, operation_of, tag
from policies.scoring.constraints import refusal
from shunter.demo.rules import Rules
from shunter.demo.trace import load_rows, max_tokens, request_of
from streams.config.declarations import load_fleet, load_policy
from topics import encode, parse_request

NINE = {
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


def test_the_packaged_trace_has_all_nine_classes_in_order_of_arrival():
    rows = load_rows()
    assert len(rows) >= 1500
    assert {row.task for row in rows} == NINE
    assert [row.arrival_s for row in rows] == sorted(row.arrival_s for row in rows)
    assert len({row.id for row in rows}) == len(rows)


def test_fewer_rows_are_spread_over_the_whole_trace():
    all_rows, some = load_rows(), load_rows(150)
    assert len(some) == 150
    assert len({row.id for row in some}) == 150
    assert some[-1].arrival_s > 0.9 * all_rows[-1].arrival_s
    assert {row.task for row in some} == NINE
    assert load_rows(len(all_rows) + 1) == all_rows


def test_the_router_is_told_the_prompts_length_and_not_the_replys():
    policy = load_policy(None)
    for row in load_rows():
        request = parse_request(encode(request_of(row)), bytes_max=100_000)
        found = tag(request, policy, received_at=1.0, now=1.0, ingest_partition=0)
        assert request.created_at is None
        assert found.profile.task == row.task
        assert found.profile.input_tokens == row.input_tokens
        assert found.tags["output_length"].value in {
            policy.classes[row.task].output_tokens,
            max_tokens(row.output_tokens),
        }
        told = {"output_tokens": row.output_tokens, "prefix_tokens": row.prefix_tokens}
        assert request.metadata == {"simulate": told}


def test_no_reply_is_cut_by_its_limit():
    for row in load_rows():
        assert max_tokens(row.output_tokens) >= max(64, row.output_tokens)
    assert [max_tokens(n) for n in (0, 1, 64, 65, 129, 4096)] == [64, 64, 64, 128, 256, 4096]


def test_every_request_can_be_served_and_both_readings_of_its_constraints_agree():
    fleet, policy = load_fleet(None), load_policy(None)
    options, rules = compile_options(fleet), Rules(fleet, policy)
    for row in load_rows():
        request = request_of(row)
        parsed = parse_request(encode(request), bytes_max=100_000)
        assert operation_of(parsed.url) in fleet.models[row.model].operations
        profile = tag(parsed, policy, received_at=1.0, now=1.0, ingest_partition=0).profile
        serving = options.by_model[row.model]
        able = [o for o in serving if refusal(profile, o) is None]
        assert able, request
        assert [o.pool for o in able] == [
            o.pool for o in serving if rules.allows(request, o.pool, o.precision)
        ], request


def test_enough_requests_have_constraints_and_each_kind_forbids_something():
    fleet, policy = load_fleet(None), load_policy(None)
    options, rules = compile_options(fleet), Rules(fleet, policy)
    rows = load_rows()
    kinds: dict[str, int] = {}
    for row in rows:
        request = request_of(row)
        for kind in request.get("constraints", {}):
            serving = options.by_model[row.model]
            allowed = sum(rules.allows(request, o.pool, o.precision) for o in serving)
            kinds[kind] = kinds.get(kind, 0) + (allowed < len(serving))
    assert set(kinds) == {"data_class", "regions", "precisions", "exclude_pools", "labels"}
    assert all(count > 10 for count in kinds.values()), kinds
    assert len({request_of(row)["tenant"] for row in rows}) == 4
