"""Record the topics of a small installation, so that later versions are known to read them.

python tests/support/record_corpus.py tests/data/corpus/0.1.0

Real routers and workers on a real Kafka do a little of everything, and are killed with work left in
the hold, in a lane and on ingest. What stands on each topic then is written down, a
file for each. Evidence names the machine that ran a request: `unshare --uts` gives it another name.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import yaml
from aiokafka.admin import AIOKafkaAdminClient
from corpus_cases import PREFIX, Corpus, Recorded
from model_server import Exchange, good, serving
from running_system import FLEET, System, chat, eventually

from shunter.logs.reading import read_all
from streams.config.declarations import load_fleet, load_policy, text_of
from streams.engine.log import Partition
from streams.kafka.log import KafkaLog
from topics import Catalogue, Settings
from topics.embedded_broker.broker import EmbeddedBroker

ROOT = Path(__file__).parents[2]
PARTITIONS = 2
RUN_S_MAX = 120.0
TRACE = "0af7651916cd43dd8448eb211c80319c"
PREMIUM = FLEET["pools"]["premium-eu"]
POOLS: dict[str, Any] = {
    **FLEET["pools"],
    # Cheap, so that it is asked first; a model server that fails where it is told to.
    "served-eu": PREMIUM | {"usd_per_hour": 0.5},
    # No worker of it ever runs.
    "idle-us": PREMIUM | {"region": "us-east"},
}
RUNNING = ("premium-eu", "lpddr-us", "served-eu")
# Until everybody is up and known, on a machine that has other things to do.
STARTED_S = 25.0
ENVIRONMENT = {
    "SHUNTER_PARTITIONS": str(PARTITIONS),
    "SHUNTER_EVIDENCE_HEADS_S": "1",
    "SHUNTER_DUPLICATE_WINDOW_RECORDS": "100",
    "SHUNTER_TRANSACTION_TIMEOUT_MS": "3000",
    "SHUNTER_EVIDENCE_SECRET": "corpus",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
}


async def record(directory: Path) -> None:
    """Run the installation, and write its topics into a directory."""
    os.environ.update(ENVIRONMENT)
    scratch = Path(tempfile.mkdtemp(prefix="shunter-corpus-"))
    # No two pools share a list, for which YAML would write an alias.
    fleet = orjson.loads(orjson.dumps({"pools": POOLS}))
    async with serving(_answer) as server:
        fleet["pools"]["served-eu"]["backend"] = {"type": "openai", "base_url": server.base_url}
        with EmbeddedBroker() as broker:
            system = System(broker.bootstrap_servers, PREFIX, scratch, fleet, ENVIRONMENT)
            async with system:
                await asyncio.to_thread(_apply, system)
                system.start("router", *RUNNING)
                await asyncio.sleep(STARTED_S)
                await _serve(system)
                await _leave(system)
                corpus = await _read(system)
    corpus.write(directory)
    print(f"{sum(map(len, corpus.topics.values()))} records of {len(corpus.topics)} topics")


async def _answer(x: Exchange) -> None:
    if x.body is not None and "fail" in x.body["messages"][0]["content"]:
        await x.json({"error": {"message": "as it was told"}}, 500)
    else:
        await good(x)


def _apply(system: System) -> None:
    """Put a policy with a tenant in force, and another in its shadow."""
    policy = yaml.safe_load((system.directory / "policy.yaml").read_text())
    policy["tenants"] = {"acme": {"rate_per_s": 1000, "share": 4}}
    (system.directory / "tenants.yaml").write_text(yaml.safe_dump(policy))
    policy["tenants"] = {"acme": {"rate_per_s": 500, "share": 1}}
    (system.directory / "shadow.yaml").write_text(yaml.safe_dump(policy))
    apply = (sys.executable, "-m", "shunter", "policy", "apply", "--by", "steward")
    for flag, name in (("--policy", "tenants.yaml"), ("--shadow", "shadow.yaml")):
        subprocess.run(
            [*apply, flag, str(system.directory / name)],
            cwd=ROOT,
            check=True,
            env=os.environ
            | {
                "SHUNTER_BOOTSTRAP_SERVERS": system.bootstrap_servers,
                "SHUNTER_TOPIC_PREFIX": PREFIX,
                "SHUNTER_FLEET": str(system.directory / "fleet.yaml"),
            },
        )


async def _serve(system: System) -> None:
    """Let each kind of request come to its end."""
    traced = [("traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode()), ("x-own", b"kept")]
    await system.publish(chat("chat-1", metadata={"order": 7}), headers=traced)
    await system.wait_for_results(["chat-1"])
    streamed = chat("chat-2", tenant="acme", constraints={"pools": ["served-eu"]})
    streamed["body"]["stream"] = True
    await system.publish(streamed)
    await system.publish(chat("chat-1"), headers=traced)
    await system.publish(chat("regulated-1", constraints={"regions": ["eu-west"]}, session="s-1"))
    failing = chat("failed-1", constraints={"pools": ["served-eu"]})
    failing["body"]["messages"] = [{"role": "user", "content": "fail"}]
    await system.publish(failing)
    both = {"pools": ["served-eu", "premium-eu"], "max_cost_usd": 1.0}
    await system.publish(failing | {"id": "fallback-1", "constraints": both})
    await system.publish(chat("rejected-1", constraints={"regions": ["eu-north"]}))
    await system.publish(chat("expired-1", created_at=time.time() - 60, deadline=time.time() - 30))
    await system.publish(b'{"id": 5}', key=b"bad-1")
    for number in range(4):
        await system.publish(chat(f"batch-{number}", task="summarization", tenant="acme"))
    await system.publish(chat("cancelled-1", task="synthetic_data"))
    await system.wait_for_steps("cancelled-1", "held")
    await system.producer.send_and_wait(
        system.catalogue.cancellations, b'{"reason": "no more"}', key=b"cancelled-1"
    )
    ended = ["chat-2", "regulated-1", "failed-1", "fallback-1", "rejected-1", "expired-1"]
    batch = [f"batch-{number}" for number in range(4)]
    await system.wait_for_results([*ended, *batch, "cancelled-1"], RUN_S_MAX)


async def _leave(system: System) -> None:
    """Leave work in the hold, in a lane and on ingest, and kill everybody."""
    nowhere = {"pools": ["idle-us"]}
    for number in range(3):
        await system.publish(
            chat(f"held-{number}", task="summarization", tenant="acme", constraints=nowhere)
        )
    system.kill("premium-eu")
    await system.publish(chat("lane-1", constraints={"pools": ["premium-eu"]}))
    await system.publish(
        chat("lane-2", constraints={"pools": ["premium-eu"], "regions": ["eu-west"]})
    )

    async def all_placed() -> bool:
        await system.read()
        wanted = ("lane-1", "lane-2", "held-0", "held-1", "held-2")
        return all(system.steps(name) for name in wanted)

    await eventually(all_placed, "what is left is placed or held", RUN_S_MAX)
    for name in ("router", *RUNNING[1:]):
        system.kill(name)
    for number in range(2):
        await system.publish(chat(f"unread-{number}"))


async def _read(system: System) -> Corpus:
    settings = Settings(
        bootstrap_servers=system.bootstrap_servers, topic_prefix=PREFIX, partitions=PARTITIONS
    )
    names, log = Catalogue(settings), KafkaLog(settings)
    topics = {}
    for topic in names.topics(POOLS):
        records = [Recorded.of(r) async for r in read_all(log, topic.name, topic.partitions)]
        topics[topic.name] = records
    groups = [names.router_group, names.batcher_group, names.canceller_group]
    groups += [names.worker_group(pool) for pool in POOLS]
    admin = AIOKafkaAdminClient(bootstrap_servers=system.bootstrap_servers)
    await admin.start()
    try:
        offsets = {
            (group, Partition(*partition)): found.offset
            for group in groups
            for partition, found in (await admin.list_consumer_group_offsets(group)).items()
        }
    finally:
        await admin.close()
    # Complete: what is packaged may be another in the version that reads this.
    files = {
        "fleet.yaml": text_of(load_fleet(system.directory / "fleet.yaml")),
        "policy.yaml": text_of(load_policy(system.directory / "tenants.yaml")),
    }
    return Corpus(topics, offsets, files, time.time(), _outcomes(topics, names))


def _outcomes(topics: dict[str, list[Recorded]], names: Catalogue) -> dict[str, Any]:
    """Return what a reader has to find, as the values themselves tell it, by no code of ours."""
    newest = {record.key: record for record in topics[names.held]}
    return {
        "statuses": {
            told["id"]: told["status"]
            for told in (orjson.loads(r.value or b"") for r in topics[names.results])
        },
        "steps": sorted(
            f"{told['request_id']} {told['step']}"
            for told in (orjson.loads(r.value or b"") for r in topics[names.evidence])
        ),
        "held": sorted((r.key or b"").decode() for r in newest.values() if r.value is not None),
    }


if __name__ == "__main__":
    asyncio.run(record(Path(sys.argv[1])))
