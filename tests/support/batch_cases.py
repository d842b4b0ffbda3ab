"""A batch's world in memory, in which a process dies at any step of its own."""

import asyncio
import contextlib
import random
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from policy_cases import a_policy

from gateway.batches import driver, finalization, object_batches
from gateway.batches.directory import DirectoryBatch, DirectoryBatches
from gateway.batches.driver import Driver, Parts
from gateway.batches.exchange import HeaderList
from gateway.batches.object_batches import ObjectBatch, ObjectBatches
from gateway.batches.record import FINAL, BatchRecord
from gateway.batches.signs_of_life import BEAT_S
from gateway.batches.store import BatchFolder, new_batch_id
from gateway.batches.texts import LineTexts
from gateway.exchange.publisher import UnavailableError
from gateway.files.directory import DirectoryFiles
from gateway.files.expiries import Expiries
from gateway.files.object_files import ObjectFiles
from gateway.files.store import FileRecord
from gateway.http.keys import KeyProofs
from policies import Policy
from streams.engine.trace_context import Context
from topics import Cost, Response, Result, ResultError, Timing, Usage, durable_files, encode
from topics.objects import NewObject, Objects
from topics.records.key_proof import proven_key

TENANT, KEY_ID, SECRET = "acme", "acme-1", "shared"
CREATED_IN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOW = 1_790_000_000.0
LINE_BYTES_MAX = 1024 * 1024


class Killed(BaseException):
    """The process is dead: what it has not done by now it never does."""


def chat_line(name: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": f"say {name}"}]}
    return {
        "custom_id": name,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    } | fields


def file_of(lines: Collection[Any]) -> bytes:
    return b"".join(
        (line if isinstance(line, bytes) else orjson.dumps(line)) + b"\n" for line in lines
    )


class World:
    """Kafka and whoever answers; it lives on when a process dies."""

    def __init__(self, seed: int, *, turned_away: float = 0.0, unavailable: float = 0.0) -> None:
        self.random = random.Random(seed)
        self.now_s = NOW
        self.ingest: list[tuple[str, bytes, float]] = []
        self.results: list[tuple[str, bytes]] = []
        self.cancelled: set[str] = set()
        self.open: dict[str, bytes] = {}
        self.steps_left: int | None = None
        self.steps = 0
        self.is_answering = True
        self._turned_away = turned_away
        self._unavailable = unavailable
        self._takers: dict[str, Any] = {}
        self._position = 0

    def now(self) -> float:
        return self.now_s

    def step(self) -> None:
        """One step of the process: it may be the one at which it dies."""
        self.steps += 1
        self.now_s += 0.02
        if self.steps_left is not None:
            if self.steps_left <= 0:
                raise Killed
            self.steps_left -= 1

    def _asked(self) -> None:
        self.step()
        if self.random.random() < self._unavailable:
            raise UnavailableError("not now")

    async def publish(
        self, request_id: str, value: bytes, headers: HeaderList, cause: Context | None
    ) -> None:
        self._asked()
        assert cause is not None, "each line knows the span that created its batch"
        assert cause.header().decode() == CREATED_IN
        await asyncio.sleep(0)
        proven = proven_key([*headers], SECRET.encode(), request_id, TENANT)
        assert proven == KEY_ID, "each line has the key that its batch was created with"
        self.ingest.append((request_id, value, self.now_s))
        self.open.setdefault(request_id, value)
        self._asked()

    async def cancel(self, request_id: str) -> None:
        self._asked()
        self.cancelled.add(request_id)
        self.step()

    async def ends(self) -> Mapping[int, int]:
        self._asked()
        return {0: len(self.results)}

    @contextlib.asynccontextmanager
    async def following(self, prefix: str, take: Any) -> Any:
        self._takers = {prefix: take}
        self._position = len(self.results)
        yield
        self._takers = {}

    def positions(self) -> Mapping[int, int]:
        return {0: self._position}

    async def catch_up(self, positions: Mapping[int, int], prefix: str, take: Any) -> None:
        end = len(self.results)
        for request_id, value in self.results[positions[0] : end]:
            self._asked()
            await asyncio.sleep(0)
            if request_id.startswith(prefix):
                await take(request_id, value)

    async def published(self, ids: Collection[str], since: float) -> set[str]:
        self._asked()
        return {each for each, _, at in self.ingest if each in ids and at >= since}

    async def passed(self, until: float) -> None:
        """Wait for a time, in epoch seconds."""
        while self.now_s < until:  # noqa: ASYNC110 - the clock is this class
            await asyncio.sleep(0)

    async def answer(self) -> None:
        """End requests, and have the living process read results."""
        while True:
            await asyncio.sleep(0)
            self.now_s += 0.01
            if self.is_answering:
                for request_id in self.random.sample(sorted(self.open), (len(self.open) + 1) // 2):
                    self._end(request_id)
                for request_id in self.cancelled & self.open.keys():
                    self._end(request_id)
            upto = min(len(self.results), self._position + self.random.randint(0, 5))
            for request_id, value in self.results[self._position : upto]:
                for prefix, take in self._takers.items():
                    if request_id.startswith(prefix):
                        take(request_id, value)
            self._position = upto

    def _end(self, request_id: str) -> None:
        body = orjson.loads(self.open.pop(request_id))["body"]
        said = body["messages"][0]["content"] if "messages" in body else body["input"]
        timing = Timing(NOW, finished_at=self.now_s)
        if request_id in self.cancelled:
            ended = Result(request_id, "cancelled", timing, error=ResultError("cancelled", "so"))
        elif self.random.random() < self._turned_away:
            error = ResultError("rate_limited", "too many")
            if len(self.results) % 2:
                error = ResultError("budget", "full", retry_at=self.now_s + 1.0)
            ended = Result(request_id, "rejected", timing, error=error)
        elif "fail" in said:
            error = ResultError("timeout", "tried in vain", {"a": "timeout"})
            ended = Result(request_id, "failed", timing, error=error)
        else:
            ended = Result(
                *(request_id, "completed", timing, Response(200, {"said": said})),
                usage=Usage(3, 2, 1),
                cost=Cost(0.25),
            )
        self.results.append((request_id, encode(ended)))


class Site:
    """The folder that outlives processes, and the processes.

    Args:
        root: a directory of one's own.
        world: what is around.
        is_remote: whether files are kept in an object store.
        url: of the object store; unset, fsspec's in memory.
        policy: in force; unset, one without limits.
    """

    def __init__(
        self,
        root: Path,
        world: World,
        *,
        is_remote: bool = False,
        url: str | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.world = world
        self.objects = Objects(url or f"memory://{root}") if is_remote else None
        self.expiries = None if self.objects is None else Expiries(self.objects)
        if self.objects is None or self.expiries is None:
            self.files: Any = DirectoryFiles(root)
        else:
            self.files = ObjectFiles(self.objects, self.expiries)
        self.store = self.batches(root)
        fleet: Any = SimpleNamespace(
            policy=policy or a_policy(),
            rate_wait_s=lambda _: 0.1,
            options_of=lambda _: (),
            default_model={"/v1/moderations": "guard"}.get,
        )
        self.parts = Parts(
            self.files,
            world,
            LineTexts(fleet, KeyProofs(SECRET)),
            world,
            LINE_BYTES_MAX,
            ending_s_max=5.0,
            wait_s=0.001,
            in_flight_max=20,
            chunk_lines=7,
        )

    def batches(self, root: Path) -> Any:
        """Return the store as another process has it."""
        if self.objects is None or self.expiries is None:
            return DirectoryBatches(root)
        return ObjectBatches(self.objects, self.expiries, self.world)

    def create(self, contents: bytes, root: Path, **fields: Any) -> BatchFolder:
        self.root = root
        source = FileRecord("file-00000000000x", TENANT, len(contents), NOW, "in", "batch")
        written = self.files.begin(TENANT, source.id)
        written.write(contents)
        self.files.add(source, written)
        written.close()
        given: dict[str, Any] = {
            "id": new_batch_id(self.world.now()),
            "tenant": TENANT,
            "endpoint": "/v1/chat/completions",
            "input_file_id": "file-x",
            "completion_window": "24h",
            "created_at": self.world.now(),
            "expires_at": self.world.now() + 86400,
            "key_id": KEY_ID,
            "traceparent": CREATED_IN,
        }
        batch = BatchRecord(**given | fields)
        self.store.create(batch, self.files.place(source))
        folder: BatchFolder | None = self.store.get(TENANT, batch.id)
        assert folder is not None
        return folder

    async def owned(self, folder: BatchFolder) -> BatchFolder:
        """Return a batch as a new process has it, which owns it when all others are dead."""
        if isinstance(folder, DirectoryBatch):
            return folder
        assert isinstance(folder, ObjectBatch)
        store = self.batches(self.root)
        while True:
            store.start()
            store.open_batches()
            own = ObjectBatch(store, *folder.base.split("/")[1:])
            async with own.owned() as is_ours:
                if is_ours:
                    return own
            self.world.now_s += 7.0

    async def _beat(self, folder: BatchFolder) -> None:
        while isinstance(folder, ObjectBatch):
            beaten_at = self.world.now_s
            folder.store.beat()
            await self.world.passed(beaten_at + BEAT_S)

    async def live(self, folder: BatchFolder, steps: int | None = None) -> bool:
        """Let a process drive the batch; return whether it came to the end before it died."""
        self.world.steps_left = None
        folder = await self.owned(folder)
        self.world.steps_left = steps
        beside = [asyncio.create_task(work) for work in (self.world.answer(), self._beat(folder))]
        try:
            async with asyncio.timeout(60):
                await Driver(folder, folder.read(), self.parts).run()
        except (Killed, UnavailableError):
            return False
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
        return True

    async def live_to_the_end(self, folder: BatchFolder, *, steps_max: int | None = None) -> int:
        """Let processes live for random times, one after the other; return how many died."""
        died = 0
        while True:
            steps = None if steps_max is None else self.world.random.randint(0, steps_max)
            if died > 200:
                steps = None
            if await self.live(folder, steps) and folder.read().status in FINAL:
                self.world.steps_left = None
                return died
            died += 1

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        record = self.files.get(TENANT, file_id, self.world.now())
        assert record is not None
        with self.files.open(record) as file:
            data = file.read()
        assert record.bytes == len(data)
        return [orjson.loads(line) for line in data.splitlines()]


@contextlib.contextmanager
def dying_writes(world: World) -> Iterator[None]:
    """Make each write a step at which the process may die: before, after, and half way through."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_whole", "create_exclusive", "replace", "remove"):
            patch.setattr(durable_files, name, _stepped(world, getattr(durable_files, name)))
        real = durable_files.append

        def append(descriptor: int, data: bytes) -> None:
            try:
                world.step()
            except Killed:
                real(descriptor, data[: world.random.randint(0, len(data))])
                raise
            real(descriptor, data)
            world.step()

        patch.setattr(durable_files, "append", append)
        for name in ("write", "create", "copy", "delete"):
            patch.setattr(Objects, name, _stepped(world, getattr(Objects, name)))
        patch.setattr(NewObject, "finish", _stepped(world, NewObject.finish))

        async def at_once(work: Any, *args: Any) -> Any:
            return work(*args)

        patch.setattr(driver, "in_thread", at_once)
        patch.setattr(finalization, "in_thread", at_once)
        patch.setattr(object_batches, "in_thread", at_once)
        yield


def _stepped(world: World, real: Any) -> Any:
    def stepped(*args: Any) -> Any:
        if str(args[1:2]).startswith("('gateways/"):
            # A process tells that it lives beside what it does.
            return real(*args)
        world.step()
        done = real(*args)
        world.step()
        return done

    return stepped
