"""Hosts whose clocks are wrong by a minute, and clients that say what time they like."""

import itertools
import re
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import for_code
from running_system import System, chat, eventually

from topics import encode

# Of clocks that have been set, as well as a busy broker's answers let them be.
APART_S = 3.0


@pytest.mark.slow
@pytest.mark.kafka
async def test_hosts_a_minute_apart_serve_as_hosts_do_that_are_not(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    """A worker whose clock was behind was never up, and one that was ahead let all expire."""
    skews = {"router": -30.0, "premium-eu": 60.0, "lpddr-us": -60.0}
    async with System(kafka, prefix, tmp_path, ahead_s_of=skews, policy_speed=4.0) as system:
        system.start_all()
        now = [chat(f"now-{n}") for n in range(10)]
        batch = {"task": "summarization", "constraints": {"pools": ["lpddr-us"]}}
        later = [chat(f"later-{n}", **batch) for n in range(10)]
        began_at = time.time()
        for request in (*now, *later):
            await system.publish(request)
        await system.wait_for_results([r["id"] for r in (*now, *later)], timeout_s=120)
        ended_at = time.time()
        pools = Counter[str]()
        for request in (*now, *later):
            result = system.result(request["id"])
            assert result["status"] == "completed", result
            pools[result["placement"]["pool"]] += 1
            timing = result["timing"]
            times = [timing[k] for k in ("created_at", "routed_at", "started_at", "finished_at")]
            told = [began_at, *times, ended_at]
            late = [b - a for a, b in pairwise(told)]
            assert min(late) > -APART_S, timing
        assert pools.keys() == {"premium-eu", "lpddr-us"}
        assert all(abs(e["at"] - began_at) < ended_at - began_at + 1 for e in system.evidence)
        for name, skew_s in skews.items():
            log = (system.directory / f"{name}.log").read_text()
            found = re.findall(r"this host is ([\d.]+) s (behind|ahead of) that of the broker", log)
            assert found, log
            apart_s, word = found[-1]
            assert word == ("ahead of" if skew_s > 0 else "behind")
            assert abs(float(apart_s) - abs(skew_s)) < APART_S
        # Its last heartbeat would have counted for a minute.
        system.kill("premium-eu")
        names = (f"unserved-{n}" for n in itertools.count())

        async def is_held() -> bool:
            await system.publish(chat(next(names), constraints={"pools": ["premium-eu"]}))
            await system.read()
            return any(
                e["step"] == "held" for e in system.evidence if "unserved" in e["request_id"]
            )

        await eventually(is_held, "its pool counts as dead", 45)


@pytest.mark.kafka
async def test_old_timestamps_are_no_way_around_a_rate(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async with System(kafka, prefix, tmp_path) as system:
        path = system.directory / "policy.yaml"
        policy = yaml.safe_load(path.read_text()) | {"tenants": {"acme": {"rate_per_s": 1}}}
        path.write_text(yaml.safe_dump(policy))
        system.start_all()
        ids = [f"r-{number}" for number in range(400)]
        now_ms = int(time.time() * 1000)
        for number, request_id in enumerate(ids):
            await system.producer.send(
                system.catalogue.requests,
                encode(chat(request_id, tenant="acme")),
                key=request_id.encode(),
                timestamp_ms=now_ms - (len(ids) - number) * 1000,
            )
        await system.producer.flush()
        await system.wait_for_results(ids, timeout_s=120)
        limited = [
            i for i in ids if (system.result(i)["error"] or {}).get("code") == "rate_limited"
        ]
        # Ten seconds of each partition's part at once, and what has come since then.
        assert len(limited) > 300


@pytest.mark.kafka
async def test_a_topic_with_the_times_of_its_writers_is_told_of(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async with System(kafka, prefix, tmp_path, ahead_s_of={"router": 60.0}) as system:
        await give_up_brokers_time(kafka, system.catalogue.requests, system.catalogue.evidence_keys)
        system.start_all()
        log = system.directory / "router.log"

        async def is_told() -> bool:
            # The setting is in force some moments after it was acknowledged.
            await system.publish(chat("r"))
            text = log.read_text()
            return all(
                f"{topic} has not the broker's time" in text
                for topic in (system.catalogue.requests, system.catalogue.evidence_keys)
            )

        await eventually(is_told, "both topics are told of", 120)
        assert "that of the broker, which counts" not in log.read_text()


async def give_up_brokers_time(kafka: str, *topics: str) -> None:
    """Set topics as installations have them that were made before."""
    wanted = {"message.timestamp.type": "CreateTime"}
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        responses = await admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, topic, wanted) for topic in topics]
        )
        for response in responses:
            assert all(for_code(code).errno == 0 for code, *_ in response.resources)
    finally:
        await admin.close()
