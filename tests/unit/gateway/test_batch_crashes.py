"""A batch whose process dies at any step: nothing is lost, doubled, or run after its end."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from batch_cases import KEY_ID, NOW, TENANT, Site, World, chat_line, dying_writes, file_of
from policy_cases import a_policy
from tiers import seeds

from gateway.batches.directory import DirectoryBatch
from gateway.batches.lines import LINES_A_TURN, BatchLine, Input, run_of_id
from gateway.batches.object_batches import ObjectBatch
from gateway.batches.record import BatchRecord
from gateway.batches.store import BatchFolder, NotCancellableError
from policies import Policy

NAMES = [f"line {n}" for n in range(40)]
LINES = [chat_line(name) for name in NAMES[:-2]] + [
    chat_line(name, body={"model": "m", "messages": [{"role": "user", "content": "fail"}]})
    for name in NAMES[-2:]
]


def each_once(site: Site, batch: BatchRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return output and errors by custom_id; together they have each line of the input once."""
    output, errors = site.lines(batch.output_file_id), site.lines(batch.error_file_id)
    count = Counter(line["custom_id"] for line in output + errors)
    assert count == Counter(NAMES)
    assert len({line["id"] for line in output + errors}) == len(NAMES)
    for line in output:
        assert line["response"]["body"]["said"] == f"say {line['custom_id']}"
    return tuple({line["custom_id"]: line for line in each} for each in (output, errors))  # type: ignore[return-value]


def no_line_twice(world: World) -> None:
    """No run is published twice, and none after the line has an end that counts."""
    ids = Counter(request_id for request_id, _, _ in world.ingest)
    assert set(ids.values()) <= {1}, [each for each, count in ids.items() if count > 1]
    ended = Counter(
        run_of_id(request_id)[0]
        for request_id, value in world.results
        if json.loads(value)["status"] != "rejected"
    )
    assert set(ended.values()) <= {1}


def is_over(site: Site, folder: BatchFolder) -> None:
    assert site.store.open_batches() == []
    if isinstance(folder, ObjectBatch):
        assert set(folder.store.objects.names(folder.base)) <= {"ended.json", "verdict", "log"}
        assert folder.store.objects.names(f"{folder.base}/log") == []
        return
    assert isinstance(folder, DirectoryBatch)
    assert {path.name for path in folder.path.iterdir() if path.name[0] != "."} <= {
        "batch.json",
        "cancel",
        "gate",
        "lock",
    }


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("seed", seeds(5, 20))
async def test_a_process_that_dies_at_any_step(tmp_path: Path, seed: int, is_remote: bool) -> None:
    away, off = [(0.0, 0.0), (0.2, 0.0), (0.0, 0.02), (0.2, 0.02)][seed % 4]
    world = World(seed, turned_away=away, unavailable=off)
    site = Site(tmp_path, world, is_remote=is_remote)
    folder = site.create(file_of(LINES), tmp_path)
    with dying_writes(world):
        died = await site.live_to_the_end(folder, steps_max=60)
    batch = folder.read()
    assert died
    assert batch.status == "completed"
    _, errors = each_once(site, batch)
    assert set(errors) == set(NAMES[-2:])
    assert errors[NAMES[-1]]["response"]["status_code"] == 502
    counts = batch.counts
    assert (counts.total, counts.completed, counts.failed) == (40, 38, 2)
    assert (counts.input_tokens, counts.cached_tokens, counts.output_tokens) == (114, 38, 76)
    assert counts.cost_usd == 38 * 0.25
    assert batch.in_progress_at is not None
    assert batch.finalizing_at is not None
    assert batch.completed_at is not None
    no_line_twice(world)
    is_over(site, folder)


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("seed", seeds(3, 12))
async def test_a_cancellation_holds(tmp_path: Path, seed: int, is_remote: bool) -> None:
    world = World(seed, turned_away=0.1 * (seed % 2))
    site = Site(tmp_path, world, is_remote=is_remote)
    folder = site.create(file_of(LINES), tmp_path)
    with dying_writes(world):
        for _ in range(world.random.randint(0, 4)):
            await site.live(folder, world.random.randint(0, 120))
        world.steps_left = None
        try:
            folder.cancel(world.now())
        except NotCancellableError:
            return
        sent = len(world.ingest)
        await site.live_to_the_end(folder, steps_max=60)
    batch = folder.read()
    assert batch.status == "cancelled"
    assert batch.cancelling_at is not None
    assert batch.completed_at is None
    assert len(world.ingest) == sent, "what was published after the cancellation"
    if batch.in_progress_at is not None:
        _, errors = each_once(site, batch)
        told = {(line["error"] or {}).get("code") for line in errors.values()}
        assert told <= {"batch_cancelled", None}
    no_line_twice(world)
    is_over(site, folder)


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("seed", seeds(3, 12))
async def test_a_batch_expires_with_what_it_has(tmp_path: Path, seed: int, is_remote: bool) -> None:
    world = World(seed)
    site = Site(tmp_path, world, is_remote=is_remote)
    folder = site.create(file_of(LINES), tmp_path, expires_at=NOW + 4, completion_window="4s")
    with dying_writes(world):
        # One in an object store is written in fewer steps.
        await site.live(folder, 40 if is_remote else 150)
        world.is_answering = False
        await site.live_to_the_end(folder, steps_max=60)
    batch = folder.read()
    assert batch.status == "expired"
    assert batch.expired_at is not None
    _, errors = each_once(site, batch)
    told = {line["error"]["code"] for line in errors.values() if line["error"]}
    assert told == {"batch_expired"}
    no_line_twice(world)
    is_over(site, folder)


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("seed", seeds(2, 7))
async def test_bad_input_fails_and_nothing_runs(tmp_path: Path, seed: int, is_remote: bool) -> None:
    world = World(seed)
    site = Site(tmp_path, world, is_remote=is_remote)
    folder = site.create(file_of([*LINES, b"nonsense"]), tmp_path)
    with dying_writes(world):
        await site.live_to_the_end(folder, steps_max=4)
    batch = folder.read()
    assert batch.status == "failed"
    assert [(e.code, e.line) for e in batch.errors] == [("invalid_json_line", 41)]
    assert world.ingest == []
    is_over(site, folder)


async def test_a_batch_has_one_owner(tmp_path: Path) -> None:
    site = Site(tmp_path, World(0))
    folder = site.create(file_of(LINES), tmp_path)
    async with folder.owned() as first, folder.owned() as second:
        assert (first, second) == (True, False)
    async with folder.owned() as again:
        assert again


async def test_a_full_disk_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from topics import durable_files

    site = Site(tmp_path, World(1))
    folder = site.create(file_of(LINES), tmp_path)
    real, left = durable_files.append, 30

    def append(descriptor: int, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            real(descriptor, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        real(descriptor, data)

    monkeypatch.setattr(durable_files, "append", append)
    with pytest.raises(OSError, match="No space"):
        await site.live(folder)
    assert await site.live(folder)
    each_once(site, folder.read())
    no_line_twice(site.world)


async def test_the_tenants_rate_slows_and_fails_nothing(tmp_path: Path) -> None:
    world = World(3, turned_away=0.5)
    site = Site(tmp_path, world)
    folder = site.create(file_of(LINES), tmp_path)
    await asyncio.wait_for(site.live(folder), 90)
    _, errors = each_once(site, folder.read())
    assert set(errors) == set(NAMES[-2:])
    assert any(run_of_id(request_id)[1] for request_id, _, _ in world.ingest)


@pytest.mark.parametrize("is_remote", [False, True])
async def test_lines_that_no_budget_takes_are_told_and_expire_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_remote: bool
) -> None:
    world = World(3, turned_away=1.0)
    site = Site(tmp_path, world, is_remote=is_remote)
    folder = site.create(file_of(LINES), tmp_path, expires_at=NOW + 400, completion_window="400s")
    seen: list[dict[str, Any] | None] = []
    told = BatchRecord.told

    def write(self: BatchFolder, batch: BatchRecord) -> None:
        seen.append(told(batch)["shunter"]["turned_away"])
        written(self, batch)

    written = type(folder).write
    monkeypatch.setattr(type(folder), "write", write)
    await asyncio.wait_for(site.live(folder), 90)
    batch = folder.read()
    assert (batch.status, batch.counts.completed, batch.counts.failed) == ("expired", 0, 40)
    waited = [each for each in seen if each]
    assert max(each["lines"] for each in waited) > 1
    assert {each["code"] for each in waited} <= {"budget", "rate_limited"}
    # Whole seconds: within the first one it is NOW.
    assert all(NOW <= each["until"] < NOW + 3600 for each in waited)
    assert told(batch)["shunter"]["turned_away"] is None
    _, errors = each_once(site, batch)
    ends = {line["error"]["code"] for line in errors.values()}
    why = [line["error"]["message"].partition("expired. ")[2] for line in errors.values()]
    assert ends == {"batch_expired"}
    assert set(why) - {""} == {
        "It waited: it was last turned away as budget.",
        "It waited: it was last turned away as rate_limited.",
    }


@pytest.mark.parametrize(
    ("rules", "window_s", "most"),
    [
        ({"tenants": {TENANT: {"budgets": [{"window_s": 60, "requests": 19}]}}}, 60.0, 38),
        ({"default_tenant": {"budgets": [{"window_s": 3600, "requests": 39}]}}, 60.0, 39),
        ({"tenants": {TENANT: {"budgets": [{"window_s": 60, "requests": 5}]}}}, 419.0, None),
        ({"tenants": {TENANT: {"budgets": [{"window_s": 60, "usd": 0.0}]}}}, 419.0, None),
        (
            {"keys": {KEY_ID: {"tenant": TENANT, "budgets": [{"window_s": 60, "requests": 9}]}}},
            119.0,
            27,
        ),
    ],
)
async def test_a_batch_with_more_lines_than_its_budget_ever_accepts_fails_before_one_runs(
    tmp_path: Path, rules: dict[str, Any], window_s: float, most: int | None
) -> None:
    policy = Policy.model_validate(a_policy().model_dump() | rules)
    site = Site(tmp_path, World(3), policy=policy)
    # NOW is 20 s into a minute: 60 s from it lie in two windows of a minute, 419 s in eight.
    folder = site.create(file_of(LINES), tmp_path, expires_at=NOW + window_s)
    assert await site.live(folder)
    batch = folder.read()
    if most is None:
        assert batch.status == "completed"
        return
    assert (batch.status, site.world.ingest) == ("failed", [])
    (error,) = batch.errors
    assert (error.code, error.line) == ("insufficient_quota", None)
    assert f"accepts at most {most} before" in error.message


@pytest.mark.parametrize(("of_bulk", "status"), [(20, "completed"), (21, "failed")])
async def test_lines_that_name_a_class_count_against_its_budget_too(
    tmp_path: Path, of_bulk: int, status: str
) -> None:
    declared = a_policy().model_dump()
    declared["classes"]["bulk"]["budgets"] = [{"window_s": 86400, "requests": 20}]
    site = Site(tmp_path, World(3), policy=Policy.model_validate(declared))
    lines = [chat_line(name, shunter={"task": "bulk"}) for name in NAMES[:of_bulk]]
    lines += [chat_line(name) for name in NAMES[of_bulk:]]
    folder = site.create(file_of(lines), tmp_path, expires_at=NOW + 4000)
    assert await site.live(folder)
    batch = folder.read()
    assert (batch.status, bool(site.world.ingest)) == (status, status == "completed")
    told = [(error.code, error.message) for error in batch.errors]
    assert bool(told) == (status == "failed")
    for code, message in told:
        assert code == "insufficient_quota"
        assert "has 21 lines of class bulk; the budget of classes.bulk, 20 requests" in message


class Arriving(World):
    """A world in which a result arrives each time that somebody looks at the clock."""

    def now(self) -> float:
        for take in self._takers.values():
            for request_id, value in self.results[:1]:
                take(request_id, value)
        return super().now()


@pytest.mark.parametrize("is_remote", [False, True])
async def test_a_batch_tells_how_far_it_is_while_results_keep_arriving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_remote: bool
) -> None:
    site = Site(tmp_path, Arriving(3), is_remote=is_remote)
    folder = site.create(file_of([chat_line(f"line {n}") for n in range(400)]), tmp_path)
    seen: list[tuple[str, int]] = []

    def write(self: BatchFolder, batch: BatchRecord) -> None:
        seen.append((batch.status, batch.counts.completed))
        written(self, batch)

    written = type(folder).write
    monkeypatch.setattr(type(folder), "write", write)
    assert await site.live(folder)
    counts = {completed for status, completed in seen if status == "in_progress"}
    assert len(counts) > 3
    assert folder.read().counts.completed == 400


async def test_what_two_owners_have_written_is_taken_once(tmp_path: Path) -> None:
    """As on a file system that has lost its locks."""
    site = Site(tmp_path, World(5))
    folder = site.create(file_of(LINES), tmp_path)
    with dying_writes(site.world):
        await site.live(folder, 90)
    assert isinstance(folder, DirectoryBatch)
    output = folder.file("output")
    (*_, last), size = output.read_bytes().splitlines(keepends=True), output.stat().st_size
    assert size
    with folder.file("errors").open("ab") as errors, output.open("ab") as again:
        errors.write(last)
        again.write(last)
    assert await site.live(folder)
    each_once(site, folder.read())


async def test_other_requests_have_their_turns_beside_many_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, parsed, parse = 0, Counter[int](), Input.parse

    def counted(source: Input, data: bytes, now: float) -> BatchLine:
        parsed[turn] += 1
        return parse(source, data, now)

    async def others() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(Input, "parse", counted)
    site = Site(tmp_path, World(1))
    site.parts.in_flight_max = site.parts.chunk_lines = 100
    folder = site.create(file_of([chat_line(f"line {n}") for n in range(100)]), tmp_path)
    other = asyncio.create_task(others())
    assert await site.live(folder)
    other.cancel()
    # Checked, published and ended; of the two last, one step of each may fall into one turn.
    assert sum(parsed.values()) >= 300
    assert max(parsed.values()) <= 2 * LINES_A_TURN


async def test_lines_of_moderations_need_no_model(tmp_path: Path) -> None:
    site, url = Site(tmp_path, World(1)), "/v1/moderations"
    lines = [chat_line(name, url=url, body={"input": name}) for name in NAMES]
    folder = site.create(file_of(lines), tmp_path, endpoint=url)
    assert await site.live(folder)
    batch = folder.read()
    assert (batch.status, batch.model) == ("completed", "guard")
    assert {json.loads(value)["model"] for _, value, _ in site.world.ingest} == {"guard"}
