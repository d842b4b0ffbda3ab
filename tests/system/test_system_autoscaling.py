"""The need of a pool, on a real Kafka: for what its worker has not read, and where it has none."""

import asyncio
import signal
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from model_server import Exchange, good, serving
from running_system import FLEET, System, chat, eventually

from policies import compile_options, tag
from policies.autoscaling import device_s
from streams.config.declarations import load_fleet, load_policy
from topics import Envelope, Placement, Profile, parse_request
from topics.embedded_broker.settings import free_port
from topics.records import headers as h

pytestmark = pytest.mark.kafka

POOL = "premium-eu"
DEEP = 300
DUE_S = 7200.0
TOKENS = 10_000


async def put_on_lane(system: System, request_id: str) -> Profile:
    """Put a request on the direct lane, as large as it takes to need hardware in two hours."""
    now = time.time()
    value = orjson.dumps(chat(request_id, deadline=now + DUE_S - 100, created_at=now))
    parsed = parse_request(value, bytes_max=1_000_000)
    found = tag(parsed, load_policy(None), received_at=now, now=now, ingest_partition=0).profile
    profile = replace(found, output_tokens=TOKENS)
    placement = Placement(POOL, "h200", "llama-3.1-8b-fp8", "fp8", "eu-west", "direct")
    headers = h.encoded(
        profile=profile,
        placement=placement,
        promised=Envelope(cost_usd=0.5, ttft_s=1.0, finish_s=60.0, chance=0.9),
    )
    await system.producer.send(
        system.catalogue.pool_lane(POOL, "direct"),
        value,
        key=request_id.encode(),
        headers=list(headers.items()),
    )
    return profile


async def test_unread_requests_ask_for_workers_with_and_without_one(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    port = free_port()
    blocked = asyncio.Event()

    async def model(x: Exchange) -> None:
        if x.body is not None and x.body.get("stream"):
            await blocked.wait()
        await good(x)

    async with serving(model) as server:
        backend = {"type": "openai", "base_url": server.base_url}
        fleet = {"pools": {POOL: FLEET["pools"][POOL] | {"backend": backend}}}
        env = {"SHUNTER_DRAIN_S_MAX": "0.5", "SHUNTER_SESSION_TIMEOUT_MS": "6000"}
        env_of = {
            "router": {"SHUNTER_WEB_PORT": str(port)},
            POOL: {"SHUNTER_IN_FLIGHT_MAX": "8", "SHUNTER_POLL_RECORDS_MAX": "10"},
        }
        async with System(
            kafka, prefix, tmp_path, fleet=fleet, policy_speed=1.0, extra_env=env, env_of=env_of
        ) as system:

            async def until(holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
                told: dict[str, Any] = {}

                async def it_does() -> bool:
                    nonlocal told
                    told = await asked_of(port)
                    return bool(told) and holds(told)

                try:
                    await eventually(it_does, what, 60)
                except AssertionError as error:
                    raise AssertionError(f"{error}: {told}\n{system.logs()}") from error
                return told

            system.start("router", POOL)
            await until(lambda t: t["workers"] == 1 and t["unread"] == 0, "nothing waits")
            names = [f"deep-{n}" for n in range(DEEP)]
            for name in names:
                profile = await put_on_lane(system, name)
            await system.producer.flush()
            option = compile_options(load_fleet(tmp_path / "fleet.yaml")).by_pool[POOL][0]
            needed = pytest.approx(DEEP * device_s(profile, option) / DUE_S, rel=0.1)
            # All of it, though its worker has taken no more than a poll beyond its maximum.
            told = await until(lambda t: t["replicas_needed"] == needed, "all of it is told")
            assert told["workers"] == 1
            assert told["unread"] == pytest.approx(DEEP, rel=0.15)

            # As the autoscaler may have it: gone, though work lies there.
            await stop(system)
            told = await until(lambda t: t["workers"] == 0 and bool(t["unread"]), "it is found")
            assert told["unread"] == DEEP
            assert told["replicas_needed"] == needed

            blocked.set()
            system.env_of = {}
            system.start(POOL)
            await system.wait_for_results(names, 120)
            # With a transaction's marker behind it.
            await system.publish(chat("last"), partition=0)
            await system.wait_for_results(["last"])
            await until(lambda t: (t["unread"], t["workers_needed"]) == (0, 0), "nothing is left")
            await stop(system)
            await until(
                lambda t: (t["workers"], t["unread"], t["workers_needed"]) == (0, 0, 0),
                "a pool with nothing to do may stay without a worker",
            )
            # The marker is why the group's own lag is nothing to scale by (docs/workers.md).
            assert await group_lag(system) >= 1


async def group_lag(system: System) -> int:
    """Return how far the offsets of the pool's group are below the ends of its lanes."""
    admin = AIOKafkaAdminClient(bootstrap_servers=system.bootstrap_servers)
    await admin.start()
    try:
        group = system.catalogue.worker_group(POOL)
        offsets = await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    ends = await system.consumer.end_offsets(offsets)
    return sum(ends[partition] - offsets[partition].offset for partition in offsets)


async def stop(system: System) -> None:
    stopped = system.processes.pop(POOL)
    stopped.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(stopped.wait, 90) == 0


async def asked_of(port: int) -> dict[str, Any]:
    """Return what the router tells of the pool, nothing while it does not answer."""

    def ask() -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/autoscaling", timeout=60) as page:
                return dict(orjson.loads(page.read())["pools"][POOL])
        except OSError:
            return {}

    return await asyncio.to_thread(ask)
