"""Workers on a model server: two share the work and one leaves in peace; one gets no answer."""

import asyncio
import copy
import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_server import Exchange, good, serving
from running_system import FLEET, System, chat, eventually

pytestmark = pytest.mark.kafka


async def test_a_worker_that_is_stopped_leaves_what_it_can_not_finish_to_the_other(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    blocked = asyncio.Event()

    async def model(x: Exchange) -> None:
        if x.body is not None and x.body.get("stream"):
            await blocked.wait()
        await good(x)

    ids = [f"c-{n}" for n in range(12)]
    async with serving(model) as server:
        pool = FLEET["pools"]["premium-eu"]
        backend = {"type": "openai", "base_url": server.base_url}
        fleet = {"pools": {"premium-eu": pool | {"backend": backend}}}
        env = {"SHUNTER_DRAIN_S_MAX": "0.5", "SHUNTER_SESSION_TIMEOUT_MS": "6000"}
        async with System(
            kafka, prefix, tmp_path, fleet=fleet, policy_speed=1.0, extra_env=env
        ) as system:
            system.start("router", "premium-eu", "premium-eu#1")
            for request_id in ids:
                await system.publish(chat(request_id))

            async def all_run() -> bool:
                # More, where one worker had begun before the other came for its share.
                return len({e.writer for e in asked(server.asked)}) >= len(ids)

            await eventually(all_run, "all run", 60)
            stopped = system.processes.pop("premium-eu#1")
            stopped.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(stopped.wait, 90) == 0
            blocked.set()
            await system.wait_for_results(ids)
            assert all(len(system.results[name]) == 1 for name in ids)
            writers = {e["writer"] for e in system.evidence if e["step"] == "executed"}
            assert writers == {f"worker/premium-eu/{name}" for name in ("premium-eu-0",)}
        # What the stopped one ran was run a second time.
        assert len(asked(server.asked)) > len(ids)


def asked(exchanges: list[Exchange]) -> list[Exchange]:
    return [exchange for exchange in exchanges if exchange.body.get("stream")]


async def test_a_pool_that_answers_no_more_is_left_and_avoided(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    is_mute = asyncio.Event()

    async def falls_silent(x: Exchange) -> None:
        if "chat" in x.path and is_mute.is_set():
            await asyncio.Event().wait()
        await good(x)

    async with serving(falls_silent) as server:
        pool = FLEET["pools"]["premium-eu"] | {"backend": {"type": "simulated"}}
        backend = {"type": "openai", "base_url": server.base_url, "first_token_s_max": 1.0}
        cheap = {
            "kind": "premium_gpu",
            "memory_gb": 141,
            "memory_bandwidth_tb_s": 4.8,
            "tflops": {"bf16": 989, "fp8": 1979},
            "usd_per_hour": 0.1,
        }
        mute_pool = copy.deepcopy(pool) | {"device": "cheap", "backend": backend}
        fleet = {"devices": {"cheap": cheap}, "pools": {"mute": mute_pool, "premium-eu": pool}}
        async with System(kafka, prefix, tmp_path, fleet=fleet, policy_speed=1.0) as system:
            system.start_all()
            names = (f"r-{n}" for n in itertools.count())

            async def publish_until(holds: Callable[[Any], bool], what: str) -> None:
                async def one_does() -> bool:
                    await system.publish(chat(next(names)))
                    await system.read()
                    return any(holds(system.result(name)["placement"]) for name in system.results)

                await eventually(one_does, what, 40)

            await publish_until(lambda p: p["pool"] == "mute", "the cheap pool serves")
            is_mute.set()
            await publish_until(lambda p: bool(p["fallbacks"]), "a request falls back")
            sent = int(next(names)[2:])
            await system.wait_for_results(f"r-{n}" for n in range(sent))
            assert {r["status"] for (r,) in system.results.values()} == {"completed"}
            fell = {f["pool"] for name in system.results for f in fallbacks(system, name)}
            assert fell == {"mute"}
            tried = len(asked(server.asked))
            later = [f"b-{n}" for n in range(20)]
            for request_id in later:
                await system.publish(chat(request_id))
            await system.wait_for_results(later)
            # Its circuit is open: nothing is sent but a probe now and then.
            assert len(asked(server.asked)) - tried <= 2
            assert sum(bool(fallbacks(system, name)) for name in later) <= 2


def fallbacks(system: System, request_id: str) -> list[dict[str, str]]:
    return system.result(request_id)["placement"]["fallbacks"]


async def test_a_pool_that_is_gone_is_evacuated(kafka: str, prefix: str, tmp_path: Path) -> None:
    async def never(x: Exchange) -> None:
        if x.body is not None and x.body.get("stream"):
            await asyncio.Event().wait()
        await good(x)

    ids = [f"c-{n}" for n in range(8)]
    async with serving(never) as server:
        there = FLEET["pools"]["premium-eu"] | {"backend": {"type": "simulated"}}
        backend = {"type": "openai", "base_url": server.base_url}
        gone = copy.deepcopy(there) | {"backend": backend, "usd_per_hour": 0.1}
        fleet = {"pools": {"gone": gone, "premium-eu": there}}
        async with System(kafka, prefix, tmp_path, fleet=fleet, policy_speed=1.0) as system:
            system.start("router", "gone")
            for request_id in ids:
                await system.publish(chat(request_id))

            async def all_are_sent() -> bool:
                await system.read()
                return all({"placed", "released"} & {*system.steps(name)} for name in ids)

            await eventually(all_are_sent, "all are sent", 30)
            system.kill("gone")
            system.start("premium-eu", "gone#evacuate")
            await system.wait_for_results(ids)
            for name in ids:
                assert system.result(name)["status"] == "completed"
                assert system.result(name)["placement"]["pool"] == "premium-eu"
                assert [(f["pool"], f["reason"]) for f in fallbacks(system, name)] == [
                    ("gone", "unavailable")
                ]
