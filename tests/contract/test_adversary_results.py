"""Results that are altered, and constraints that are broken by who has the keys: both say so.

SHUNTER_ADVERSARY_SEEDS=5000 pytest -n0 tests/contract/test_adversary_results.py
"""

import base64
import copy
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from adversary import TRUST, introduced_trail
from audit_cases import Trail
from second_verifier import RESULTS, export, second_findings
from stream_cases import make_key

from shunter.audit.findings import Findings
from shunter.audit.keyring import Keyring
from shunter.audit.results import Results
from streams.engine.log import Partition, Record
from streams.evidence.projection import decode_step
from topics import ChainHead, Response, Result, Root, Salt, Timing, decode, encode
from topics.records.evidence import ENDS
from topics.signing.merkle import leaf_hash
from topics.signing.request_parts import parts_of, request_digests
from topics.signing.salts import digest_key, text_digest
from topics.signing.signed_root import leaves_of, make_root

SEEDS = int(os.environ.get("SHUNTER_ADVERSARY_SEEDS", "100"))
START = int(os.environ.get("SHUNTER_ADVERSARY_START", "0"))
SECRET = b"of the installation"
SALTS = [Salt(f"t{n}", f"s{n}", base64.b64encode(bytes([n]) * 32).decode()) for n in range(3)]
KEYS = {salt.id: digest_key(salt, SECRET) for salt in SALTS}
HOME = Partition("results", 0)

Row = dict[str, Any]


def ended() -> tuple[list[Row], list[Row]]:
    """Evidence of ends of each kind, and their results, as parsed JSON."""
    ends: list[Row] = []
    results: list[Row] = []
    for n in range(15):
        step, salt = [*ENDS][n % 5], f"s{n % 3}"
        status, body = ENDS[step], {"choices": [{"text": f"answer {n}"}], "n": n / 4}
        has_answer = step in {"executed", "failed"}
        end: Row = {
            "request_id": f"r{n}",
            "step": step,
            "at": 1000.0 + n,
            "source": {"topic": "yard.requests", "partition": 0, "offset": n},
        }
        if has_answer:
            end["response_digest"] = {"salt": salt, "hmac": text_digest(KEYS[salt], body)}
        ends.append(end)
        response = Response(200, body) if has_answer else None
        result = Result(f"r{n}", status, Timing(1.0), response)
        results.append({"key": f"r{n}", "value": orjson.loads(encode(result))})
    return ends, results


def first_finds(ends: list[Row], results: list[Row]) -> Findings:
    found, checked = Findings(), Results(KEYS.get, {HOME: (0, 1000)})
    for end in ends:
        checked.ended(decode_step(orjson.dumps(end)))
    for offset, row in enumerate(results):
        value = orjson.dumps(row["value"])
        record = Record(HOME, offset, row["key"].encode(), value, [], 0)
        checked.add(record, f"results/0@{offset}", found)
    checked.finish(found)
    return found


def second_finds(ends: list[Row], results: list[Row]) -> list[str]:
    found: list[str] = []
    salts = [{"value": orjson.loads(encode(salt))} for salt in SALTS]
    keys = RESULTS.keys_of(salts, SECRET)
    assert keys == KEYS
    evidence = [{"value": end} for end in ends]
    rows = [row | {"where": f"results/0@{n}"} for n, row in enumerate(results)]
    RESULTS.check_results(rows, evidence, keys, 0.0, lambda kind, *_: found.append(kind))
    return found


def forge_results(results: list[Row], rng: random.Random) -> str:
    """Change results in place; return what was done."""
    at = rng.randrange(len(results))
    value, answered = results[at]["value"], [r for r in results if r["value"].get("response")]
    others = [f"r{n}" for n in range(16) if f"r{n}" != value["id"]]

    def another_answer() -> None:
        body = rng.choice(answered)["value"]["response"]["body"]
        body[rng.choice(["n", "choices", "more"])] = rng.choice([None, -1, "x", [1]])

    def swap_answers() -> None:
        one, two = (each["value"] for each in rng.sample(answered, 2))
        one["response"], two["response"] = two["response"], one["response"]

    def add_an_answer() -> None:
        bare = rng.choice([r for r in results if r not in answered])
        bare["value"]["response"] = {"status_code": 200, "body": {"choices": []}}

    def change_all() -> None:
        for each in answered:
            each["value"]["response"]["body"]["n"] += 1

    ways: dict[str, Callable[[], object]] = {
        "drop": lambda: results.pop(at),
        "again": lambda: results.insert(rng.randrange(15), copy.deepcopy(results[at])),
        "key": lambda: results[at].update(key="x"),
        "id": lambda: value.update(id=rng.choice(others)),
        "status": lambda: value.update(
            status=rng.choice([s for s in ENDS.values() if s != value["status"]])
        ),
        "answer": another_answer,
        "lose": lambda: rng.choice(answered)["value"].update(response=None),
        "swap": swap_answers,
        "add": add_an_answer,
        "all": change_all,
    }
    how = rng.choice([*ways])
    ways[how]()
    return how


def test_each_forgery_of_results_is_flagged_by_both() -> None:
    ends, whole = ended()
    assert first_finds(ends, whole).is_good
    assert second_finds(ends, whole) == []
    missed, ways = [], Counter[str]()
    for seed in range(START, START + SEEDS):
        results = copy.deepcopy(whole)
        how = forge_results(results, random.Random(seed))
        ways[how] += 1
        first, second = first_finds(ends, results), second_finds(ends, results)
        if first.is_good or not second:
            missed.append((seed, how, first.is_good, second))
    assert not missed, missed[:9]
    assert len(ways) == 10


def test_both_make_the_same_digests_of_requests() -> None:
    """Of any request, its parts included; a changed part is none any more."""
    request: Row = {
        "id": "r",
        "tenant": "acme",
        "body": {"messages": ["ü", 1.0, 1e21]},
        "constraints": {"regions": ["eu-west"], "a/b~": 1},
        "slo": {},
        "deadline": 1e9,
    }
    body, whole = request_digests(KEYS["s1"], request) or ("", "")
    digests = {"hmac": body, "whole": whole}
    assert RESULTS.matches(request, KEYS["s1"], digests) == ["body", "whole"]
    assert RESULTS.matches(request | {"tenant": "x"}, KEYS["s1"], digests) == ["body"]
    assert RESULTS.matches(request | {"body": {}}, KEYS["s1"], digests) == []
    parts = parts_of(request)
    index, part = next((n, p) for n, p in enumerate(parts) if p.pointer == "/constraints/regions")
    shown = {
        "parts": [
            {
                "pointer": part.pointer,
                "value": part.value,
                "blind": base64.b64encode(part.blind).decode(),
                "index": index,
            }
        ],
        "leaves": base64.b64encode(b"".join(p.leaf for p in parts)).decode(),
    }
    assert RESULTS.matches(shown, KEYS["s1"], digests) == ["/constraints/regions"]
    shown["parts"][0]["value"] = ["us-east"]
    assert RESULTS.matches(shown, KEYS["s1"], digests) == []


def rewrite(trail: Trail, at: int, value: Row) -> None:
    """Change evidence as who has all signing keys can: each root after it is signed again."""
    old, new = trail.evidence[at].value or b"", orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    trail.evidence[at] = trail.evidence[at]._replace(value=new)
    swapped, heads = {leaf_hash(old): leaf_hash(new)}, dict[str, ChainHead]()
    keys = {key.id: key for key in (make_key(1), make_key(2))}
    order = sorted(
        range(len(trail.roots)),
        key=lambda n: decode(Root, trail.roots[n].value or b"").statement.sequence,
    )
    for n in order:
        root = decode(Root, trail.roots[n].value or b"")
        said = root.statement
        leaves = [swapped.get(leaf, leaf) for leaf in leaves_of(root)]
        given = (keys[said.key].private, said.key, said.writer, said.chain, heads.get(said.chain))
        made, heads[said.chain] = make_root(*given, leaves, said.at)
        trail.roots[n] = trail.roots[n]._replace(value=encode(made))
    gone = [r for r in trail.keys if (r.key or b"").startswith(b"heads/")]
    trail.keys = [r for r in trail.keys if r not in gone]


def break_a_constraint(value: Row, rng: random.Random) -> str:
    """Make the request of a decision one that may not go where it went."""
    row, decision = value["decision"]["profile"], value["decision"]
    row += [None] * (23 - len(row))
    how, pool = rng.choice(["regions", "precisions", "pools", "exclude_pools", "cost"]), ""
    if how == "exclude_pools":
        pool = decision["pools"][decision["candidates"][0][0]][0]
    wanted: dict[str, tuple[int, Any]] = {
        "regions": (16, ["mars"]),
        "precisions": (17, ["int1"]),
        "pools": (18, []),
        "exclude_pools": (19, ["x", pool]),
        "cost": (22, 1e-12),
    }
    column, told = wanted[how]
    row[column] = told
    return how


async def test_a_broken_constraint_is_flagged_by_both_though_it_is_signed(tmp_path: Path) -> None:
    whole = await introduced_trail()
    placed = [
        n
        for n, record in enumerate(whole.evidence)
        if b'"device":' in (record.value or b"") and b'"profile":' in (record.value or b"")
    ]
    assert placed
    whole.progress = []
    change: Callable[[Row, random.Random], str] = break_a_constraint
    missed, ways = [], Counter[str]()
    for seed in range(START, START + max(SEEDS // 5, 20)):
        rng = random.Random(seed)
        trail = replace(whole, evidence=list(whole.evidence), roots=list(whole.roots))
        at = rng.choice(placed)
        value = orjson.loads(trail.evidence[at].value or b"")
        ways[how := change(value, rng)] += 1
        rewrite(trail, at, value)
        first = await trail.verified(keyring=Keyring(installations=frozenset({TRUST})))
        export(trail, tmp_path)
        second = second_findings(tmp_path, trust=[TRUST])
        if set(first.counts) != {"constraint"} or set(second) != {"constraint"}:
            missed.append((seed, how, dict(first.counts), second))
    assert not missed, missed[:5]
    assert len(ways) > 2
