"""The digest of a whole request, and parts of it shown alone."""

import base64
import hashlib
import hmac
import json
from typing import Any

import orjson
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.audit import texts
from shunter.audit.disclosures import disclose, shown_parts
from shunter.console import UserError
from topics import InferenceRequest, TextDigest, parse_request
from topics.signing.request_parts import parts_of, request_digests, whole_digest
from topics.signing.salts import text_digest

KEY = bytes(range(32))
REQUEST: dict[str, Any] = {
    "id": "r1",
    "tenant": "acme",
    "deadline": 1_800_000_000.0,
    "created_at": 1.5,
    "service_tier": "priority",
    "body": {"model": "m", "messages": [{"role": "user", "content": "a secret"}]},
    "constraints": {
        "regions": ["eu-west", "é"],
        "labels": {"a/b": "~"},
        "max_cost_usd": 1e-6,
        "exclude_pools": [],
    },
    "slo": {"ttft_ms": 200},
    "hints": {},
    "metadata": None,
}


def by_the_document(request: dict[str, Any], key: bytes) -> str:
    """Return the digest as docs/evidence.md specifies it, written from there."""
    parts = {}
    for name, value in request.items():
        if name in {"constraints", "slo", "hints"} and isinstance(value, dict) and value:
            parts |= {
                f"/{name}/{inner.replace('~', '~0').replace('/', '~1')}": each
                for inner, each in value.items()
            }
        else:
            parts[f"/{name}"] = value
    ordered = sorted(parts.items())
    hashes = [hashlib.sha256(rfc8785.dumps([p, v])).digest() for p, v in ordered]
    stream = hashlib.shake_256(b"".join(hashes)).digest(16 * len(hashes))
    blinds = [stream[16 * n : 16 * n + 16] for n in range(len(hashes))]
    leaves = [hashlib.sha256(b + h).digest() for b, h in zip(blinds, hashes, strict=True)]
    return base64.b64encode(hmac.digest(key, b"".join(leaves), "sha256")[:18]).decode()


def whole(request: dict[str, Any], key: bytes = KEY) -> str:
    found = request_digests(key, request)
    assert found is not None
    return found[1]


def test_it_is_what_the_document_says_and_so_is_that_of_the_body() -> None:
    assert request_digests(KEY, REQUEST) == (
        text_digest(KEY, REQUEST["body"]),
        by_the_document(REQUEST, KEY),
    )
    assert whole(REQUEST) == whole_digest(KEY, [part.leaf for part in parts_of(REQUEST)])


SCALARS = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS | st.integers(-(2**53) + 1, 2**53 - 1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(["body", "constraints", "slo", "a", "tenant", "deadline"])


@settings(deadline=None)
@given(st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES)), st.data())
def test_the_quick_way_is_the_plain_one_for_any_value(
    request: dict[str, Any], data: st.DataObject
) -> None:
    request = json.loads(json.dumps({"body": {}} | request))
    assert whole(request) == by_the_document(request, KEY)
    names = data.draw(st.permutations(list(request)))
    assert whole({name: request[name] for name in names}) == whole(request)


CHANGES: list[dict[str, Any]] = [
    {"id": "r2"},
    {"tenant": "other"},
    {"deadline": 1_800_000_001.0},
    {"service_tier": "flex"},
    {"body": REQUEST["body"] | {"max_tokens": 1}},
    {"constraints": REQUEST["constraints"] | {"regions": ["eu-west"]}},
    {"constraints": {}},
    {"constraints": REQUEST["constraints"] | {"pools": None}},
    {"slo": {"ttft_ms": 201}},
    {"slo": None},
    {"hints": None},
    {"metadata": 0},
    {"session": None},
]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_added_or_left_out_shows(change: dict[str, Any]) -> None:
    assert whole(REQUEST | change) != whole(REQUEST)
    (name,) = change
    without = {each: value for each, value in REQUEST.items() if each != name}
    assert whole(without) != whole(REQUEST | change)


def test_it_is_of_the_request_as_it_was_sent_and_not_as_it_was_read() -> None:
    sent = {"custom_id": "c1", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m"}}
    parsed = parse_request(orjson.dumps(sent), bytes_max=1000)
    assert parsed.sent == sent
    named = {"body": {"model": "m"}}
    assert parse_request(orjson.dumps(named), bytes_max=1000, default_id="e1").sent == named
    assert InferenceRequest(id="r", body={}, model="m").sent == {}


def test_a_request_without_a_canonical_form_has_no_digest() -> None:
    assert request_digests(KEY, {"body": {"x": "\ud800"}}) is None
    assert request_digests(KEY, {"body": {}, "metadata": ["\ud800"]}) is None
    assert request_digests(KEY, {"body": {}, "metadata": 10**400}) is None


SHOWN = ["/constraints/regions", "/tenant", "/constraints/max_cost_usd"]


def test_a_part_is_proven_and_no_other_part_is_told() -> None:
    document = json.loads(json.dumps(disclose(REQUEST, SHOWN)))
    assert shown_parts(KEY, whole(REQUEST), document) == [
        ("/constraints/regions", ["eu-west", "é"]),
        ("/tenant", "acme"),
        ("/constraints/max_cost_usd", 1e-6),
    ]
    assert "secret" not in str(document)
    # Nor can a part be guessed by who has the leaves, and not the request.
    guess = hashlib.sha256(rfc8785.dumps(["/service_tier", "priority"])).digest()
    leaves = base64.b64decode(document["leaves"])
    blinds = [base64.b64decode(part["blind"]) for part in document["parts"]] + [b"", bytes(16)]
    assert all(hashlib.sha256(blind + guess).digest() not in leaves for blind in blinds)


@pytest.mark.parametrize(
    "forge",
    [
        lambda d: d["parts"][0].update(value=["us-east"]),
        lambda d: d["parts"][0].update(pointer="/constraints/pools"),
        lambda d: d["parts"][0].update(blind=base64.b64encode(bytes(16)).decode()),
        lambda d: d["parts"][0].update(blind="?"),
        lambda d: d["parts"][0].update(index=0),
        lambda d: d["parts"].append({"pointer": "/tenant"}),
        lambda d: d["parts"].append(None),
        lambda d: d.update(leaves=d["leaves"][4:]),
        lambda d: d.update(leaves=""),
        lambda d: d.update(leaves=base64.b64encode(bytes(32 * 300)).decode()),
        lambda d: d.update(parts=None),
        lambda d: d.pop("leaves"),
    ],
)
def test_a_part_that_was_not_sent_is_not_proven(forge: Any) -> None:
    document = json.loads(json.dumps(disclose(REQUEST, SHOWN[:1])))
    forge(document)
    assert shown_parts(KEY, whole(REQUEST), document) == []


def test_a_part_of_another_request_or_salt_is_not_proven() -> None:
    document = disclose(REQUEST, SHOWN)
    assert shown_parts(KEY, whole(REQUEST | {"id": "r2"}), document) == []
    assert shown_parts(bytes(32), whole(REQUEST), document) == []


def test_what_can_t_be_shown_is_told() -> None:
    with pytest.raises(UserError, match="no part /constraints/pools; it has /body, /constraints"):
        disclose(REQUEST, ["/constraints/pools"])
    with pytest.raises(UserError, match="JSON object"):
        disclose([], ["/a"])
    with pytest.raises(UserError, match="no canonical form"):
        disclose({"a": 10**400}, ["/a"])


def said(given: Any, digest: TextDigest) -> list[str]:
    return [found.told for found in texts._found(KEY, digest, "request", given)]


def test_a_file_is_told_for_what_it_is() -> None:
    body, digest = request_digests(KEY, REQUEST) or ("", "")
    now, before = TextDigest("s", body, digest), TextDigest("s", body)
    changed = REQUEST | {"tenant": "other"}
    assert said(REQUEST, now) == ["it is the whole request"]
    assert said(REQUEST["body"], now) == ["it is the body of the request"]
    (line,) = said(changed, now)
    assert line.endswith("but what the file has beside it is not what was sent")
    (found,) = texts._found(KEY, now, "request", changed)
    assert found.is_altered
    # Trails of earlier versions have a digest of the body alone.
    for file in (REQUEST, changed, REQUEST["body"]):
        assert said(file, before) == ["it is the body of the request"]
    shown = disclose(REQUEST, ["/tenant"])
    assert said(shown, now) == ['/tenant of the request was "acme"']
    assert said(shown, before) == []
    assert said(disclose(changed, ["/tenant"]), now) == []
    assert said({"messages": []}, now) == said([], now) == said(10**400, now) == []
