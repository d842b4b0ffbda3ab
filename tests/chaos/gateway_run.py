"""`kill -9` of gateways, router, worker and broker under batches and streams, judged from outside.

python tests/chaos/gateway_run.py --batches 20 --streams 200

Clients ask by HTTP alone, at either of two gateways, and come again with the same
`Idempotency-Key` where one dies under them. A model server tells what ran, and for how long. Lines
have a budget that lets them wait, and a judge holds the books against the evidence.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests"
sys.path[:0] = [str(ROOT), *(str(HERE / name) for name in ("support", "overload", "chaos"))]

from gateway_cases import KEY, MODEL, Door, fleet, opened_door
from model_server import USAGE, Exchange, ModelServer
from running_system import SPEED, System, eventually
from stream import show
from tenants import judged

from streams.config.declarations import load_policy
from topics.embedded_broker.broker import EmbeddedBroker
from topics.embedded_broker.settings import free_port

POOL, ENDPOINT = "served-eu", "/v1/chat/completions"
PIECES = 12
# After each piece, by the first word of what is asked.
PAUSES_S = {"stream": 0.25, "batch": 0.02, "hold": 3600.0}
LINES = 25
# Of all lines together: there are windows in which it is full. The tenant's own only counts.
TASK, LINES_BUDGET = "summarization", {"window_s": 10.0, "requests": 80}
TENANT_BUDGET = {"window_s": 3600.0, "requests": 10**6, "tokens": 10**9, "usd": 10.0**5}
# Between the beginnings of two batches, so that there is work under each kill.
BATCH_EVERY_S = 2.5
LEAVERS_PER_S, STAYS_S = 4.0, 1.0
# A gateway that is killed this soon after its client left may not have seen that.
SEEN_S = 0.1
# From when both gateways answer again to the next kill.
CALM_S = 5.0
BACK_S_MAX = 300.0
LEFT_S_MAX = 1.0
END_S_MAX = 900.0
GONE_S = 20.0
ENDED = {"failed", "completed", "expired", "cancelled"}


@dataclass
class Server:
    """What the model server saw."""

    runs: Counter[str] = field(default_factory=Counter)
    stopped_at: dict[str, float] = field(default_factory=dict)

    async def answer(self, x: Exchange) -> None:
        """Answer with what was asked, in pieces; `hold …` never ends by itself."""
        said = x.body["messages"][-1]["content"] if x.body else ""
        self.runs[said] += 1
        if not x.body or not x.body.get("stream"):
            message = {"role": "assistant", "content": answer_to(said)}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            await x.json({"id": "x", "created": 1, "choices": choices, "usage": USAGE})
            return
        self.stopped_at.pop(said, None)
        try:
            await x.events()
            for text in pieces_of(said):
                await x.event(x.piece(text))
                await asyncio.sleep(PAUSES_S.get(said.partition(" ")[0], 0.0))
            await x.event(x.piece(None, "stop"))
            await x.event({"id": "x", "created": 1, "choices": [], "usage": USAGE})
            await x.end()
        finally:
            self.stopped_at[said] = time.time()


def pieces_of(said: str) -> list[str]:
    return [f"{said}: {n} " for n in range(PIECES)]


def answer_to(said: str) -> str:
    return "".join(pieces_of(said))


@dataclass
class Scene:
    """All that is killed, and what clients saw."""

    system: System
    broker: EmbeddedBroker
    doors: list[Door]
    env: dict[str, str]
    server: Server
    session: aiohttp.ClientSession
    kills: list[tuple[str, float, float]] = field(default_factory=list)
    """What was killed, when, and when both gateways answered again; infinite until then."""
    wrong: list[str] = field(default_factory=list)
    tries: list[int] = field(default_factory=list)
    left_s: list[tuple[float, bool]] = field(default_factory=list)
    """For how long each ran on whose client left, and whether it was calm then."""
    died_with_clients: int = 0
    """How many clients left a gateway within the moment before it was killed."""

    def url(self, number: int) -> str:
        return self.doors[number % len(self.doors)].url

    def is_calm(self, since: float, until: float) -> bool:
        return not any(at <= until and since <= back_at for _, at, back_at in self.kills)

    async def answers(self) -> None:
        """Wait until a request is answered at each gateway."""
        for door in list(self.doors):
            body = {"model": MODEL, "messages": [{"role": "user", "content": "warm"}]}
            headers = {"X-Shunter-Deadline": "5m"}
            url, is_answered = door.url + ENDPOINT, False
            while not is_answered:
                with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                    async with self.session.post(url, json=body, headers=headers) as answer:
                        is_answered = answer.status == 200
                await asyncio.sleep(0.1)

    async def ask(self, method: str, path: str, number: int, **given: Any) -> Any:
        """Return an answer's body, from whichever gateway gives one."""
        again = 0
        while True:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                url = self.url(number + again) + path
                async with self.session.request(method, url, **given) as answer:
                    body = await answer.read()
                    if answer.status == 200:
                        return body
                    if answer.status < 500:
                        raise RuntimeError(f"{method} {path}: {answer.status} {body[:300]!r}")
            again += 1
            await asyncio.sleep(0.3)

    def restart_door(self, number: int) -> None:
        door = self.doors[number]
        door.kill()
        self.doors[number] = opened_door(self.system, door.port, **self.env)

    async def supervise(self) -> None:
        """Start again what has ended by itself, as what starts without a broker does."""
        while True:
            await asyncio.sleep(1.0)
            for number, door in enumerate(self.doors):
                if door.process.poll() is not None:
                    self.restart_door(number)
            for name, process in list(self.system.processes.items()):
                if process.poll() is not None:
                    self.system.start(name)


async def stream(scene: Scene, number: int) -> None:
    """Ask for a stream until it has come whole; no other may look as if it had."""
    said = f"stream {number}"
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": said}]}
    headers = {"Idempotency-Key": f"{scene.system.prefix}-{number}", "X-Shunter-Deadline": "5m"}
    for tries in itertools.count(1):
        text, is_whole = "", False
        with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
            url = scene.url(number + tries) + ENDPOINT
            async with scene.session.post(url, json=body, headers=headers) as answer:
                if answer.status == 200:
                    text, is_whole = await _read(answer)
                elif answer.status not in (502, 503):
                    scene.wrong.append(f"{said}: {answer.status} {await answer.text()}")
                    return
        if is_whole:
            if text != answer_to(said):
                scene.wrong.append(f"{said} ended after {text!r}")
            scene.tries.append(tries)
            return
        await asyncio.sleep(0.3)


async def _read(answer: aiohttp.ClientResponse) -> tuple[str, bool]:
    """Return the text of a stream, and whether it says that this is all."""
    text = ""
    async for line in answer.content:
        if line.startswith(b"data: [DONE]"):
            return text, True
        if line.startswith(b"data: {"):
            event = orjson.loads(line[6:])
            if "error" in event:
                return text, False
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
    return text, False


async def leaver(scene: Scene, number: int) -> None:
    """Ask for a stream, read its first piece, and leave; see how long it runs on."""
    said = f"hold {number}"
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": said}]}
    headers = {"X-Shunter-Deadline": "5m"}
    door = scene.doors[number % len(scene.doors)]
    try:
        async with scene.session.post(door.url + ENDPOINT, json=body, headers=headers) as answer:
            if answer.status != 200 or not await answer.content.readline():
                return
            await asyncio.sleep(STAYS_S)
            if answer.content.at_eof() or answer.content.exception() is not None:
                return
            answer.close()
    except (aiohttp.ClientError, ConnectionError, TimeoutError):
        # Nobody leaves a gateway that has died, or that never took the request.
        return
    left_at = time.time()
    await asyncio.sleep(SEEN_S)
    if door.process.poll() is not None:
        # It can't tell anybody that its client left.
        scene.died_with_clients += 1
        return

    async def is_stopped() -> bool:
        return said in scene.server.stopped_at

    with contextlib.suppress(AssertionError):
        await eventually(is_stopped, f"{said} stops", GONE_S)
    ran_on_s = max(0.0, scene.server.stopped_at.get(said, time.time()) - left_at)
    scene.left_s.append((ran_on_s, scene.is_calm(left_at, left_at + ran_on_s)))


async def batch(scene: Scene, number: int) -> None:
    """Run a batch to its end, and see that each line is in one of its files, once."""
    await asyncio.sleep(number * BATCH_EVERY_S)
    names = [f"batch {number} line {n}" for n in range(LINES)]
    lines = b"".join(
        orjson.dumps(
            {
                "custom_id": name,
                "method": "POST",
                "url": ENDPOINT,
                "body": {
                    "model": MODEL,
                    "messages": [{"role": "user", "content": name}],
                    "shunter": {"task": TASK},
                },
            }
        )
        + b"\n"
        for name in names
    )

    def form() -> aiohttp.FormData:
        made = aiohttp.FormData({"purpose": "batch"})
        made.add_field("file", lines, filename="in.jsonl")
        return made

    file = None
    while file is None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
            url = scene.url(random.randrange(2)) + "/v1/files"
            async with scene.session.post(url, data=form()) as answer:
                file = (await answer.json())["id"] if answer.status == 200 else None
        await asyncio.sleep(0.3)
    wanted = {"input_file_id": file, "endpoint": ENDPOINT, "completion_window": "1h"}
    key = {"Idempotency-Key": f"{scene.system.prefix}-{number}"}
    made = orjson.loads(await scene.ask("POST", "/v1/batches", number, json=wanted, headers=key))
    while made["status"] not in ENDED:
        await asyncio.sleep(1.0)
        made = orjson.loads(await scene.ask("GET", f"/v1/batches/{made['id']}", number))
    await judge(scene, number, made, names)


async def judge(scene: Scene, number: int, made: Any, names: list[str]) -> None:
    """Hold the files of a batch against its input, and its sums against the files."""
    found: list[Any] = []
    for file_id in (made["output_file_id"], made["error_file_id"]):
        if file_id is not None:
            contents = await scene.ask("GET", f"/v1/files/{file_id}/content", number)
            found += map(orjson.loads, contents.splitlines())
    told = f"batch {number} ({made['status']})"
    if made["status"] != "completed" or made["error_file_id"] is not None:
        scene.wrong.append(f"{told}: {made['request_counts']}")
    if Counter(line["custom_id"] for line in found) != Counter(names):
        scene.wrong.append(f"{told}: {len(found)} lines, not each once")
    for line in found:
        said = ((line.get("response") or {}).get("body") or {}).get("choices")
        if not said or said[0]["message"]["content"] != answer_to(line["custom_id"]):
            scene.wrong.append(f"{told}: {line}")
    usd = sum(line["shunter"]["cost"]["usd"] for line in found if "cost" in line["shunter"])
    tokens = sum(line["shunter"]["usage"]["output_tokens"] for line in found)
    if abs(usd - made["shunter"]["cost_usd"]) > 1e-9 or tokens != made["usage"]["output_tokens"]:
        scene.wrong.append(f"{told}: {usd} USD and {tokens} tokens in its lines, told {made}")


async def kill_each(scene: Scene, until: asyncio.Event) -> None:
    """Kill one after the other, until all clients have what they want, and each at least once."""

    async def broker() -> None:
        await asyncio.to_thread(scene.broker.kill)
        await asyncio.to_thread(scene.broker.start)

    async def gateway(number: int) -> None:
        scene.restart_door(number)

    async def process(name: str) -> None:
        scene.system.kill(name)
        scene.system.start(name)

    kinds: list[tuple[str, Callable[[], Awaitable[None]]]] = [
        ("gateway", lambda: gateway(0)),
        ("worker", lambda: process(POOL)),
        ("router", lambda: process("router")),
        ("broker", broker),
        ("gateway", lambda: gateway(1)),
        ("both gateways", lambda: asyncio.gather(gateway(0), gateway(1))),  # type: ignore[return-value,arg-type]
    ]
    for number in itertools.count():
        await asyncio.sleep(CALM_S)
        if until.is_set() and number >= len(kinds):
            return
        name, kill = kinds[number % len(kinds)]
        at = time.time()
        scene.kills.append((name, at, float("inf")))
        await kill()
        async with asyncio.timeout(BACK_S_MAX):
            await scene.answers()
        scene.kills[-1] = (name, at, time.time())
        told = f"{number + 1}: kill -9 of {name}, {time.time() - at:.1f} s"
        print(told, file=sys.stderr, flush=True)


async def leave_again_and_again(scene: Scene, until: asyncio.Event) -> None:
    """Have clients that leave come at a steady pace."""
    leaving = []
    for number in itertools.count():
        if until.is_set():
            break
        leaving.append(asyncio.create_task(leaver(scene, number)))
        await asyncio.sleep(1 / LEAVERS_PER_S)
    await asyncio.gather(*leaving)


async def clients(scene: Scene, batches: int, streams: int) -> None:
    """Run batches and streams beside the kills, until each client has what it wants."""
    done, room = asyncio.Event(), asyncio.Semaphore(max(1, streams // 16))

    async def next_stream(number: int) -> None:
        async with room:
            await stream(scene, number)

    async with asyncio.TaskGroup() as group:
        group.create_task(kill_each(scene, done))
        group.create_task(leave_again_and_again(scene, done))
        async with asyncio.timeout(END_S_MAX), asyncio.TaskGroup() as asking:
            for number in range(batches):
                asking.create_task(batch(scene, number))
            for number in range(streams):
                asking.create_task(next_stream(number))
        done.set()


def policy_changes() -> dict[str, Any]:
    """Return what the run's policy has in place of the packaged one's, at the run's speed."""
    faster = load_policy(None).faster(SPEED).model_dump(mode="json", exclude_none=True)
    classes = dict(faster["classes"])
    classes[TASK] |= {"budgets": [LINES_BUDGET]}
    return {"classes": classes, "tenants": {"default": {"budgets": [TENANT_BUDGET]}}}


@contextlib.asynccontextmanager
async def scene_of(directory: Path) -> AsyncIterator[Scene]:
    """Start a system with two gateways on a broker of its own."""
    changes = policy_changes()
    server, env = Server(), {"SHUNTER_GATEWAY_FILES": str(directory / "files")}
    with EmbeddedBroker(data_dir=directory / "kafka") as broker:
        async with (
            ModelServer(server.answer) as models,
            System(
                *(broker.bootstrap_servers, "gates", directory, fleet(models.base_url)),
                policy_changes=changes,
            ) as system,
            aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {KEY}"},
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=120, sock_read=60),
            ) as session,
        ):
            system.start("router", POOL)
            doors = [opened_door(system, free_port(), **env) for _ in range(2)]
            scene = Scene(system, broker, doors, env, server, session)
            supervising = asyncio.create_task(scene.supervise())
            try:
                async with asyncio.timeout(BACK_S_MAX):
                    await scene.answers()
                yield scene
            finally:
                supervising.cancel()
                for door in scene.doors:
                    door.kill()


def _took(kill: tuple[str, float, float]) -> float:
    _, at, back_at = kill
    return back_at - at


async def run(batches: int, streams: int, directory: Path) -> Any:
    """Return what became of all clients."""
    began = time.monotonic()
    async with scene_of(directory) as scene:
        await clients(scene, batches, streams)
        calm = [s for s, is_calm in scene.left_s if is_calm]
        shaken = [s for s, is_calm in scene.left_s if not is_calm]
        lines = {said: n for said, n in scene.server.runs.items() if said.startswith("batch")}
        await scene.system.catch_up()
        books = await judged(scene.system, policy_changes(), scene.system.results.keys())
        return {
            "seconds": time.monotonic() - began,
            "kills": dict(Counter(name for name, _, _ in scene.kills)),
            "back_s_max": {
                name: back_at - at for name, at, back_at in sorted(scene.kills, key=_took)
            },
            "wrong": scene.wrong + books.amiss,
            "batches": batches,
            "lines": batches * LINES,
            "lines_turned_away_by_the_budget": books.counts["beyond a budget"],
            "settled_by_the_evidence": books.counts["accepted within budgets"],
            "lines_run_again": sum(n - 1 for n in lines.values()),
            "streams": len(scene.tries),
            "streams_asked_again": sum(tries > 1 for tries in scene.tries),
            "tries_most": max(scene.tries, default=0),
            "left_in_calm": len(calm),
            "ran_on_in_calm_s_max": max(calm, default=0.0),
            "left_within_a_fault": len(shaken),
            "ran_on_within_a_fault_s_max": max(shaken, default=0.0),
            "left_with_their_gateway": scene.died_with_clients,
        }


def beyond(found: Any) -> list[str]:
    """Return which targets were missed."""
    wrong = list(found["wrong"])
    if found["ran_on_in_calm_s_max"] > LEFT_S_MAX:
        wrong.append(f"one ran on for {found['ran_on_in_calm_s_max']:.2f} s after its client left")
    back_s = max(found["back_s_max"].values(), default=0.0)
    if found["ran_on_within_a_fault_s_max"] > back_s + LEFT_S_MAX:
        wrong.append(f"one ran on for {found['ran_on_within_a_fault_s_max']:.2f} s within a fault")
    if not found["left_in_calm"]:
        wrong.append("nobody left in calm")
    return wrong


def main() -> None:
    """Run, print what came of it, and fail where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--streams", type=int, default=200)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shunter-gates-") as name:
        show(run(asked.batches, asked.streams, Path(name)), beyond)


if __name__ == "__main__":
    main()
