"""A decision in rows is read back as it was, to the last bit where a replay needs that."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import orjson
import pytest
from corpus_cases import PREFIX, ROOT, Corpus, versions, yard_of
from evidence_cases import in_units, is_canonical, with_inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Inputs, ReleaseInputs
from policies.fleet_state.candidate_load import Learned, PoolLoad
from policies.fleet_state.sessions import Credit
from policies.placement.inputs import WaitingMember
from shunter.audit.replay import replay_steps
from streams.evidence.projection import decode_routed_step, decode_step
from topics import (
    BadRecordError,
    Batch,
    Candidate,
    Envelope,
    Evidence,
    Fallback,
    Placement,
    Profile,
    QualityCheck,
    Source,
    Tag,
    TextDigest,
    decode,
)
from topics.records.decision_columns import PROFILE as PROFILE_ROW
from topics.records.decision_rows import TAGS, rounded
from topics.records.evidence_bytes import evidence_bytes
from topics.wire.canonical_json import canonical

AT = 1_800_000_000.25
PROFILE = Profile(
    id="r-1",
    tenant="acme",
    task="chat",
    model="yard-8b",
    operation="chat",
    tier="auto",
    created_at=AT - 0.5,
    deadline=AT + 120,
    input_tokens=228,
    output_tokens=101,
    ttft_s=1.5,
    tpot_s=None,
    latency_sensitive=True,
    batchable=False,
    target_chance=0.9,
    longest_wait_s=30.0,
    window_s=0.0,
    ingest_partition=3,
    routed_at=AT,
)
FIRST = Candidate("eu", "v-fp8", "fp8", "eu-west", "direct", 2.26e-4, 0.051, 0.25, 0.002, 1.0)
REFUSED = Candidate("us", "v-int4", "int4", "us-east", "direct", refused="region")
PROMISED = Envelope(2.26e-4, 0.051, 0.25, 0.002, 1.0)
PLACED = Placement("eu", "h200", "v-fp8", "fp8", "eu-west", "direct")
CHECK = QualityCheck("chat", "v-fp8", "greedy", 0.25, 600.0, 3600.0)
LATENCY = {"direct": True, "ttft_s": 1.5, "tpot_s": None, "deadline_s": 120.5}
WEIGHTS = {"v-fp8": 8_000_000_000, "v-int4": 4_000_000_000}


def step(**changes: Any) -> Evidence:
    tags = {
        "task": Tag("chat", "policy", 0.5),
        "context_length": Tag(228, "estimate", 0.6),
        "latency_sensitivity": Tag(LATENCY, "policy", 0.9),
        "data_locality": Tag(None, "client", 1.0),
        "memory_footprint": Tag({"kv_bytes": 43, "weights_bytes": WEIGHTS}, "estimate", 0.9),
        "fallback_risk": Tag(0.0042, "estimate", 0.5),
    }
    fields: dict[str, Any] = {
        "request_id": "r-1",
        "step": "placed",
        "at": AT,
        "writer": "router/a",
        "source": Source("inference.requests", 3, 7),
        "tenant": "acme",
        "task": "chat",
        "model": "yard-8b",
        "tags": tags,
        "profile": PROFILE,
        "inputs": Inputs({"eu": PoolLoad(workers=1), "us": PoolLoad()}, 0.5),
        "candidates": (FIRST, REFUSED),
        "placement": PLACED,
        "promised": PROMISED,
        "request_digest": TextDigest("ab", "cd" * 32),
        "reason": "cheapest_in_time",
    }
    return Evidence(**(fields | changes))


def read_back(given: Evidence) -> Evidence:
    value = evidence_bytes(given)
    assert is_canonical(value)
    return with_inputs(decode(Evidence, value))


def test_a_decision_is_read_back_and_nothing_stands_there_twice() -> None:
    value = evidence_bytes(step())
    assert read_back(step()) == in_units(step())
    told = orjson.loads(value)
    assert (
        told.keys() & {"candidates", "inputs", "tags", "profile", "placement", "promised"} == set()
    )
    names = ("eu-west", "v-fp8", "acme", "yard-8b", "h200", "r-1", "fp8")
    assert [value.count(b'"%s"' % name.encode()) for name in names] == [1] * len(names)
    assert value.count(b"1800000120.25") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"tags": None},
        {"tags": {}},
        {"tags": {"other": Tag([1.0, {"a": 1e-6}], "client", 1e-9)}},
        {"tags": {"memory_footprint": Tag({"kv_bytes": 1, "weights_bytes": {}}, "estimate", 0.9)}},
        {"tags": {"context_length": Tag(5, "client", 0.25)}},
        {"tags": {"data_locality": Tag("x", "client", 0.0)}},
        {"candidates": ()},
        {"candidates": (), "placement": None, "promised": None},
        {"profile": None},
        {"profile": replace(PROFILE, tenant="another")},
        {"profile": replace(PROFILE, session="s")},
        {"profile": replace(PROFILE, quality=CHECK)},
        {"profile": replace(PROFILE, quality=replace(CHECK, of="r-0", probe=("us", "v-int4")))},
        {"profile": replace(PROFILE, routed_at=AT - 3, regions=(), exclude_pools=("us",))},
        {"profile": replace(PROFILE, labels={"b": "1", "a": "2"}, max_cost_usd=1e-6)},
        {"inputs": None},
        {"promised": replace(PROMISED, finish_s=0.3)},
        {"placement": replace(PLACED, region="eu-north"), "shadow": None},
        {"placement": replace(PLACED, attempt=2)},
        {"batch": Batch("3-7", 0, 2), "placement": replace(PLACED, batch_id="3-7")},
        {"at": 1_800_000_000.0, "trace_id": "0af7", "view_version": 0, "message": "\u00e9\uffff"},
        {"tenant": None},
        {"candidates": (replace(FIRST, tpot_s=None),), "promised": replace(PROMISED, tpot_s=None)},
        # No rows: a refused one before others, two regions of a pool, no estimate, too large, none.
        {"candidates": (REFUSED, FIRST)},
        {"candidates": (FIRST, replace(FIRST, region="eu-north"))},
        {"candidates": (replace(FIRST, cost_usd=None),)},
        {"candidates": (replace(FIRST, cost_usd=2e6),)},
        {"candidates": (replace(REFUSED, cost_usd=1.0),)},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_a_step_has_is_read_back(changes: dict[str, Any]) -> None:
    given = step(**changes)
    # What has no row keeps its digits.
    assert read_back(given) in (in_units(given), given)


def test_a_second_attempt_keeps_its_failures_in_one_place() -> None:
    failed = (Fallback("us", "timeout"),)
    profile = replace(PROFILE, attempt=2, fallbacks=failed, exclude_pools=("us",), routed_at=AT - 9)
    placement = replace(PLACED, attempt=2, fallbacks=failed)
    given = step(attempt=2, profile=profile, placement=placement)
    assert read_back(given) == in_units(given)
    assert evidence_bytes(given).count(b"timeout") == 1


def test_a_variant_may_be_of_another_precision_elsewhere() -> None:
    there = replace(FIRST, pool="us", region="us-east", precision="bf16")
    found = (FIRST, there, REFUSED, replace(there, path="hold"), replace(REFUSED, precision="fp8"))
    given = step(candidates=(*found[:2], found[3], found[2], found[4]))
    assert read_back(given) == in_units(given)
    told = orjson.loads(evidence_bytes(given))["decision"]["variants"]
    assert [row[:2] for row in told] == [
        ["v-fp8", "fp8"],
        ["v-fp8", "bf16"],
        ["v-int4", "int4"],
        ["v-int4", "fp8"],
    ]


@pytest.mark.parametrize("infinite", [float("inf"), float("nan")])
def test_what_is_no_number_is_written_as_before(infinite: float) -> None:
    first = replace(FIRST, ttft_s=infinite)
    promised = replace(PROMISED, ttft_s=infinite)
    found = read_back(step(candidates=(first, REFUSED), promised=promised))
    assert found.candidates[0] == replace(first, ttft_s=None)
    assert found.promised == replace(promised, ttft_s=None)


LOAD = PoolLoad(
    workers=2,
    running=3,
    queued=1,
    backlog_s=0.1 + 0.2,
    round_s=1e-7,
    running_by_variant={"v-fp8": 3, "v-int4": 0},
    speed_by_variant={"v-fp8": 1.0, "v-int4": 0.9371},
    failing=frozenset({"v-int4"}),
    kv_usage=1.0,
    drifted=frozenset({"v-fp8"}),
    is_filled=True,
    learned={
        "v-fp8": Learned((0.0, 0.25, 1.0), None, 0.5),
        "v-int4": Learned(None, (-0.5, 1e-6, 3.0), 0.0),
    },
    failure_rate=0.0,
)
OTHERS = replace(
    LOAD,
    running_by_variant=LOAD.running_by_variant | {"w\u00e9": 4},
    speed_by_variant=LOAD.speed_by_variant | {"w\u00e9": 0.5},
    failing=LOAD.failing | {"y"},
    learned=LOAD.learned | {"\uffff": Learned(None, None, 0.25)},
)


def test_loads_are_read_back_to_the_last_bit() -> None:
    inputs = Inputs({"eu": LOAD, "far": PoolLoad()}, 1e-9, Credit("eu", "v-fp8", 12))
    found = read_back(step(inputs=inputs)).inputs
    assert found == inputs
    told = decode(Evidence, evidence_bytes(step())).inputs["loads"]["us"]
    assert told.keys() == asdict(PoolLoad()).keys()


@pytest.mark.parametrize("candidates", [(), (REFUSED, FIRST)])
def test_where_no_candidate_stands_in_rows_a_load_is_told_whole(candidates: Any) -> None:
    inputs = Inputs({"eu": OTHERS}, 1.0)
    assert read_back(step(inputs=inputs, candidates=candidates)).inputs == inputs


def test_two_pools_may_have_one_load() -> None:
    inputs = Inputs(dict.fromkeys(("eu", "us", "far"), LOAD), 1.0)
    assert read_back(step(inputs=inputs)).inputs == inputs
    there = replace(FIRST, region="eu-north")
    assert read_back(step(inputs=inputs, candidates=(there,))).candidates == (there,)


def test_of_variants_that_are_no_candidates_only_what_keeps_a_pool_busy_is_told() -> None:
    (found,) = read_back(step(inputs=Inputs({"eu": OTHERS}, 1.0))).inputs.loads.values()
    assert found == LOAD
    idle = replace(OTHERS, running_by_variant={"v-fp8": 0, "w\u00e9": 4, "z": 0})
    (found,) = read_back(step(inputs=Inputs({"eu": idle}, 1.0))).inputs.loads.values()
    assert found == replace(LOAD, running_by_variant={"v-fp8": 0, "w\u00e9": 4})
    assert not found.is_idle


def test_a_release_is_told_with_every_variant() -> None:
    member = WaitingMember("r-1", AT - 3, AT - 3.5, AT + 9, 4.0, 10, 20, None, 0.1, 30)
    head = (member, replace(member, output_tokens_high=None))
    inputs = ReleaseInputs({"eu": OTHERS}, head, 5, 0.5)
    given = step(step="released", inputs=inputs)
    assert read_back(given) == in_units(given)


def test_a_load_that_has_changed_is_written_anew() -> None:
    load = PoolLoad(workers=1)
    inputs = Inputs({"eu": load}, 0.5)
    assert read_back(step(inputs=inputs)).inputs.loads["eu"].backlog_s == 0.0
    load.backlog_s += 0.7
    load.has_changed()
    assert read_back(step(inputs=inputs)).inputs.loads["eu"].backlog_s == 0.7


estimates = st.none() | st.floats(0, 1000)
candidates = st.lists(
    st.builds(
        Candidate,
        st.sampled_from(["eu", "us"]),
        st.sampled_from(["a", "b"]),
        st.just("fp8"),
        st.just("here"),
        st.sampled_from(["direct", "batch", "hold"]),
        st.floats(0, 100),
        estimates,
        st.floats(0, 10_000),
        estimates,
        st.none() | st.floats(0, 1),
    ),
    max_size=5,
)


@settings(deadline=None)
@given(candidates, st.floats(0, 1), st.floats(1e-12, 1e12), st.text(max_size=8))
def test_any_decision_is_read_back(
    found: list[Candidate], chance: float, at: float, text: str
) -> None:
    profile = replace(PROFILE, target_chance=chance, created_at=at, routed_at=at, tier=text)
    tags = dict.fromkeys(TAGS, Tag(text, "estimate", chance))
    given_step = step(candidates=tuple(found), profile=profile, tags=tags, at=at)
    back = read_back(given_step)
    assert back == in_units(given_step)
    for each, row in zip(found, back.candidates, strict=True):
        assert abs((row.cost_usd or 0.0) - (each.cost_usd or 0.0)) <= 0.51e-9
        assert (row.chance or 0.0) <= (each.chance or 0.0)


def in_part(given: Evidence) -> Evidence:
    """Return a decision with no more of its loads than it was made on."""
    if not isinstance(given.inputs, Inputs) or not given.candidates:
        return given
    names = {each.model_variant for each in given.candidates}
    loads = {}
    for pool, load in given.inputs.loads.items():
        counts = load.running_by_variant
        is_busy = any(count for name, count in counts.items() if name in names)
        loads[pool] = replace(
            load,
            running_by_variant={
                name: count
                for name, count in counts.items()
                if name in names or (count and not is_busy)
            },
            speed_by_variant={n: v for n, v in load.speed_by_variant.items() if n in names},
            failing=load.failing & names,
            drifted=load.drifted & names,
            learned={n: v for n, v in load.learned.items() if n in names},
        )
    return replace(given, inputs=replace(given.inputs, loads=loads))


@pytest.mark.parametrize("version", versions())
def test_a_recorded_trail_is_the_same_in_rows(version: str) -> None:
    corpus = Corpus.read(ROOT / version)
    yard = yard_of(corpus)
    values = [record.value or b"" for record in corpus.topics[f"{PREFIX}.evidence"]]
    steps = [decode(Evidence, value) for value in values]
    again = [evidence_bytes(with_inputs(each)) for each in steps]
    assert all(map(is_canonical, again))
    for value, one, other in zip(again, steps, again, strict=True):
        assert with_inputs(decode(Evidence, value)) == in_units(in_part(with_inputs(one))), other
    read = [decode(Evidence, value) for value in again]
    replayed = replay_steps(read, lambda _fleet, _policy: (yard.options, yard.policy))
    assert {each.step for each in replayed} >= {"placed", "held", "released", "rejected"}
    assert not [each for each in replayed if each.differences]
    decisions = [n for n, each in enumerate(steps) if each.candidates]
    assert all(2 * len(again[n]) < len(values[n]) for n in decisions)
    for old, new in zip(values, again, strict=True):
        seen, was = decode_routed_step(new), decode_routed_step(old)
        assert seen.profile == was.profile
        assert seen.placement == was.placement
        assert [c.pool for c in seen.candidates] == [c.pool for c in was.candidates]
        assert decode_step(new).profile == decode_step(old).profile


def test_a_replay_finds_a_candidate_that_was_altered_by_one_unit() -> None:
    corpus = Corpus.read(ROOT / versions()[0])
    yard = yard_of(corpus)
    steps = [decode(Evidence, r.value or b"") for r in corpus.topics[f"{PREFIX}.evidence"]]
    placed = next(s for s in steps if s.step == "placed" and s.candidates[0].cost_usd)
    told = orjson.loads(evidence_bytes(with_inputs(placed)))
    told["decision"]["candidates"][0][3] += 1
    altered = decode(Evidence, orjson.dumps(told))
    (found,) = replay_steps([altered], lambda _fleet, _policy: (yard.options, yard.policy))
    assert [each.partition(":")[0] for each in found.differences] == ["promised", "candidates"]


def _changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    told = orjson.loads(evidence_bytes(step()))
    change(told["decision"])
    return orjson.dumps(told)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(schema=2),
        lambda d: d.pop("schema"),
        lambda d: d["candidates"][0].__setitem__(0, 2),
        lambda d: d["candidates"][0].__setitem__(0, -1),
        lambda d: d["candidates"][0].__setitem__(1, 9),
        lambda d: d["refused"][0].__setitem__(2, 3),
        lambda d: d.update(candidates=[[0, 0, 0]]),
        lambda d: d.update(candidates=[]),
        lambda d: d.update(candidates=7),
        lambda d: d.update(pools=[]),
    ],
)
def test_rows_that_contradict_each_other_are_no_evidence(change: Any) -> None:
    value = _changed(change)
    with pytest.raises(BadRecordError):
        decode(Evidence, value)
    for read in (decode_step, decode_routed_step):
        with pytest.raises(Exception, match=r"candidate|schema|[Ee]xpected|Object"):
            read(value)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(profile=[]),
        lambda d: d.update(profile=[None] * 14),
        lambda d: d.update(tags=[[1]]),
        lambda d: d.update(tags=[[9, 0.5]]),
        lambda d: d.update(tags=[["policy", 0.5]]),
        lambda d: d.update(tags=[None] * 8 + [[1, 0.5]]),
        lambda d: d["pools"][0].__setitem__(2, [1, 0, 0, 0, 0, 0, None, 5]),
        lambda d: d["profile"].extend([None] * 9 + [[5]]),
        lambda d: d["profile"].extend([None] * (len(PROFILE_ROW) - 15) + [{"of": "r"}]),
    ],
)
def test_rows_of_another_shape_are_no_evidence(change: Any) -> None:
    with pytest.raises(BadRecordError):
        decode(Evidence, _changed(change))


def test_what_a_next_version_adds_is_left_aside() -> None:
    def grow(decision: dict[str, Any]) -> None:
        decision["next"] = {"a": 1}
        decision["candidates"][0].append("more")
        decision["pools"][0].append(7)
        decision["variants"][0].append(7)
        decision["pools"][0][2] += [
            0,
            0,
            0,
            0,
            0,
            None,
            {},
            None,
            None,
            False,
            None,
            None,
            False,
            5,
        ]
        decision["profile"] += [None] * (len(PROFILE_ROW) - 14) + ["more"]
        decision["tags"].append([1, 0.5, "more"])

    value = _changed(grow)
    assert with_inputs(decode(Evidence, value)) == in_units(step())
    placed = decode_routed_step(value).placement
    assert placed is not None
    assert placed.pool == "eu"


def test_a_rounded_chance_is_no_likelier_than_it_was() -> None:
    unlikely = replace(FIRST, chance=0.8999999)
    assert rounded(unlikely).chance == 0.899999
    assert rounded(replace(FIRST, chance=1.0)).chance == 1.0


def test_inputs_of_another_kind_keep_their_names() -> None:
    given = step(inputs={"loads": {}, "arrivals_per_s": 0.5, "credit": None})
    assert decode(Evidence, evidence_bytes(given)).inputs == given.inputs


def test_a_step_that_is_no_decision_has_no_rows_and_no_nulls() -> None:
    executed = step(step="executed", profile=None, inputs=None, tags=None, candidates=())
    value = evidence_bytes(executed)
    assert decode(Evidence, value) == executed
    assert b"null" not in value
    told = orjson.loads(canonical(executed))
    kept = {name: each for name, each in told.items() if each not in (None, [], 1, False)}
    place = asdict(PLACED).items()
    kept["request_digest"].pop("whole")
    kept["placement"] = {name: each for name, each in place if each not in (None, (), 1)}
    assert orjson.loads(value) == kept


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(ValueError, match="Unicode"):
        evidence_bytes(step(message="\ud800"))
    with pytest.raises(ValueError, match="Unicode"):
        evidence_bytes(step(message="\ud800", candidates=(), profile=None, inputs=None, tags=None))
