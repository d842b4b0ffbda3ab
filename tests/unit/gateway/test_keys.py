"""Callers: keys, their limits, and ids that tell whose a request is."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.exchange.mailbox import WAITING_BYTES_MAX, Mailbox
from gateway.exchange.request_ids import belongs_to, keyed_id, made_at, new_id
from gateway.http.errors import ApiError
from gateway.http.key_limits import KeyLimits
from gateway.http.keys import ApiKey, ApiKeys, KeysError

NOW = 1_800_000_000.0


def written(path: Path, **tenants: str) -> Path:
    keys = [
        {"tenant": tenant, "sha256": hashlib.sha256(key.encode()).hexdigest()}
        for tenant, key in tenants.items()
    ]
    path.write_text(yaml.safe_dump({"keys": keys}))
    os.utime(path, ns=(len(tenants), len(tenants)))
    return path


def test_a_key_is_its_tenants_until_the_file_says_otherwise(tmp_path: Path) -> None:
    path = written(tmp_path / "keys.yaml", acme="one")
    keys = ApiKeys(path, "0.0.0.0")  # noqa: S104 - it listens nowhere
    assert keys.caller("Bearer one").tenant == "acme"
    for header in (None, "", "one", "Basic one", "Bearer two", "Bearer "):
        with pytest.raises(ApiError, match="API key") as raised:
            keys.caller(header)
        assert (raised.value.status, raised.value.code) == (401, "invalid_api_key")
    assert not keys.refresh()
    written(path, acme="two", other="three")
    assert keys.refresh()
    assert keys.caller("bearer three").tenant == "other"
    path.write_text("keys: 3")
    assert not keys.refresh()
    assert keys.caller("Bearer two").tenant == "acme"


@pytest.mark.parametrize(
    "text", [b"keys: 3", b"keys: [", b"\xff", b"keys: [{tenant: 2026-13-45}]", b"[" * 5000]
)
def test_a_file_that_can_not_be_used_leaves_the_keys_as_they_were(
    text: bytes, tmp_path: Path
) -> None:
    path = written(tmp_path / "keys.yaml", acme="one")
    keys = ApiKeys(path, "127.0.0.1")
    path.write_bytes(text)
    assert not keys.refresh()
    assert keys.caller("Bearer one").tenant == "acme"
    with pytest.raises(KeysError):
        ApiKeys(path, "127.0.0.1")


def test_a_host_that_others_reach_needs_keys() -> None:
    assert ApiKeys(None, "127.0.0.1").caller("Bearer any").tenant == "default"
    with pytest.raises(KeysError, match="SHUNTER_GATEWAY_KEYS"):
        ApiKeys(None, "192.0.2.1")


@pytest.mark.parametrize(
    ("limits", "wait_s"), [({"requests_per_minute": 2}, 60.0), ({"concurrency": 2}, 1.0)]
)
def test_a_key_has_no_more_than_its_limits(limits: dict[str, int], wait_s: float) -> None:
    key = ApiKey.model_validate({"tenant": "a", "sha256": "0" * 64, "limits": limits})
    counted = KeyLimits()
    with counted.admitted(key, NOW), counted.admitted(key, NOW):
        with pytest.raises(ApiError) as raised, counted.admitted(key, NOW):
            pass
        assert (raised.value.status, raised.value.retry_after_s) == (429, wait_s)
    with counted.admitted(key, NOW + 60):
        pass


def test_ids_tell_whose_they_are_and_when_they_were_made() -> None:
    made = new_id("acme", NOW)
    keyed = keyed_id("acme", "/v1/x", "k")
    assert belongs_to(made, "acme")
    assert belongs_to(keyed, "acme")
    assert not belongs_to(made, "acm")
    assert made_at(made) == NOW
    assert made_at(keyed) is None
    others = [("acme", "/v1/xk", ""), ("acm", "e/v1/x", "k"), ("acme", "/v1/x", "k2")]
    assert (
        len({keyed_id(*each) for each in others} | {keyed, keyed_id("acme", "/v1/x", "k", 1)}) == 5
    )


async def test_a_mailbox_holds_no_more_than_its_limit_and_the_first_result() -> None:
    box = Mailbox("req_1")
    large: Any = b'{"index":%d,"x":"' + b"x" * (WAITING_BYTES_MAX // 2 - 50) + b'"}'
    for number in range(3):
        box.put_piece(large.replace(b"%d", b"%d" % number), number)
    timing = b'"timing":{"created_at":1}'
    box.put_result(b'{"id":"req_1","status":"completed",%b}' % timing)
    box.put_result(b'{"id":"req_1","status":"failed",%b}' % timing)
    found = [await box.piece_or_result() for _ in range(3)]
    assert [piece and piece["index"] for piece, _ in found] == [0, 1, None]
    assert found[2][1] is not None
    assert found[2][1].status == "completed"
