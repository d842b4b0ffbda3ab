"""An ``Idempotency-Key`` of a new batch: one batch, whoever asks again and whoever died."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from batch_cases import NOW

from gateway.batches.directory import DirectoryBatches
from gateway.batches.keys import KEPT_S, BatchKey, BatchKeys, DirectoryKeys, ObjectKeys
from gateway.files.expiries import Expiries
from gateway.server import listening, make_gateway
from topics import Settings
from topics.objects import Objects

BODY = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a gateway without Kafka; its batches are bad, so that none asks for one."""
    settings = Settings(
        gateway_port=0, gateway_files=str(tmp_path), bootstrap_servers="127.0.0.1:1"
    )
    async with (
        listening(make_gateway(settings)) as port,
        aiohttp.ClientSession(
            f"http://127.0.0.1:{port}/", headers={"Authorization": "Bearer k"}
        ) as session,
    ):
        yield session


async def file_of(door: aiohttp.ClientSession) -> str:
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", b"nonsense\n", filename="in.jsonl")
    async with door.post("/v1/files", data=form) as answer:
        return str((await answer.json())["id"])


async def asked(door: aiohttp.ClientSession, key: str, body: Any) -> tuple[int, Any, bool]:
    """Status, body, and whether it is a replay."""
    async with door.post("/v1/batches", json=body, headers={"Idempotency-Key": key}) as answer:
        replayed = answer.headers.get("idempotent-replayed") == "true"
        return answer.status, await answer.json(), replayed


async def test_a_key_makes_one_batch(door: aiohttp.ClientSession) -> None:
    body = BODY | {"input_file_id": await file_of(door)}
    told = await asyncio.gather(*(asked(door, "k", body) for _ in range(8)))
    assert {status for status, _, _ in told} == {200}
    assert len({batch["id"] for _, batch, _ in told}) == 1
    assert [replayed for _, _, replayed in told].count(False) == 1
    _, other, replayed = await asked(door, "k2", body)
    assert not replayed
    async with door.get("/v1/batches") as answer:
        made = {batch["id"] for batch in (await answer.json())["data"]}
    assert made == {told[0][1]["id"], other["id"]}
    status, error, _ = await asked(door, "k", body | {"completion_window": "1h"})
    assert (status, error["error"]["code"]) == (422, "idempotency_key_reused")


async def test_what_made_no_batch_claims_no_key(door: aiohttp.ClientSession) -> None:
    status, _, _ = await asked(door, "k", BODY | {"input_file_id": "file-none"})
    assert status == 404
    status, _, replayed = await asked(door, "k", BODY | {"input_file_id": await file_of(door)})
    assert (status, replayed) == (200, False)


async def test_a_gateway_that_died_with_the_claim_leaves_it_to_the_next(
    door: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = BODY | {"input_file_id": await file_of(door)}

    def die(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryBatches, "create", die)
        assert (await asked(door, "k", body))[0] == 500
    status, batch, replayed = await asked(door, "k", body)
    assert (status, replayed) == (200, True)
    assert (tmp_path / "keys").exists()
    assert (await asked(door, "k", body))[1]["id"] == batch["id"]


@pytest.mark.parametrize("is_remote", [False, True])
def test_keys_are_of_a_tenant_and_of_a_day(tmp_path: Path, is_remote: bool) -> None:
    first, second = BatchKey("batch_1", "d"), BatchKey("batch_2", "d")
    if is_remote:
        objects, at = Objects(f"memory://{tmp_path}"), NOW
        expiries = Expiries(objects)
        keys: BatchKeys = ObjectKeys(objects, expiries)
        sweep = expiries.sweep
    else:
        keys = DirectoryKeys(tmp_path)
        at, sweep = time.time(), keys.sweep
    assert keys.claim("acme", "k", first, at) == first
    assert keys.claim("acme", "k", second, at) == first
    assert keys.claim("other", "k", second, at) == second
    sweep(at + KEPT_S - 60)
    assert keys.claim("acme", "k", second, at) == first
    keys.forget("other", "k")
    assert keys.claim("other", "k", first, at + 3600) == first
    sweep(at + KEPT_S + 60)
    assert keys.claim("acme", "k", second, at) == second
    assert keys.claim("other", "k", second, at) == (first if is_remote else second)
