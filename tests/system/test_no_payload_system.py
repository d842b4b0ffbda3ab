"""No byte of a payload is in what real processes keep and say of it, at the loudest log level."""

import asyncio
import time
import urllib.request
from pathlib import Path

import orjson
import pytest
from running_system import System, chat, records_of

from topics import Catalogue
from topics.embedded_broker.settings import free_port

pytestmark = pytest.mark.kafka

PIECE = "zqxjkv"
CANARY = PIECE * 20
BODY = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": CANARY}]}


def read(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        found: bytes = answer.read()
        return found


async def kept(system: System, catalogue: Catalogue) -> dict[str, bytes]:
    """Return all that is on topics that hold neither requests nor answers."""
    names = {"evidence", "evidence_roots", "evidence_keys", "evidence_salts"}
    names |= {"progress", "pool_status", "seen_ids", "policies"}
    found = {}
    for name in names:
        records = await records_of(system, getattr(catalogue, name))
        found[name] = b"".join((r.key or b"") + (r.value or b"") for r in records)
    return found


async def test_a_canary_is_heard_nowhere(kafka: str, prefix: str, tmp_path: Path) -> None:
    port = free_port()
    extra = {"SHUNTER_LOG_LEVEL": "debug", "SHUNTER_EVIDENCE_HEADS_S": "1"}
    async with System(kafka, prefix, tmp_path, extra_env=extra) as system:
        system.env_of["router"] = {"SHUNTER_WEB_PORT": str(port)}
        system.start_all()
        far = {"deadline": time.time() + 600, "metadata": {CANARY: CANARY}, "session": CANARY[:90]}
        good = chat("good", body=BODY | {"user": CANARY, CANARY: [CANARY]}, **far)
        await system.publish(good, headers=[("authorization", CANARY.encode())])
        await system.publish(chat("twice", body=BODY | {"stream": True}, **far))
        await system.publish(chat("nowhere", body=BODY, constraints={"regions": ["mars"]}, **far))
        bad = [
            orjson.dumps({"id": "text", "body": CANARY}),
            orjson.dumps({"id": "field", "body": BODY, CANARY: CANARY}),
            orjson.dumps({"id": "type", "body": BODY, "constraints": {"regions": CANARY}}),
            CANARY.encode(),
        ]
        for value in bad:
            await system.publish(value, key=b"bad")
        topic = system.catalogue.cancellations
        reason = orjson.dumps({"reason": CANARY})
        await system.producer.send_and_wait(topic, reason, key=b"nobody")
        await system.wait_for_results(["good", "twice", "nowhere"])
        await system.wait_for_steps("nobody", "cancel_requested")
        while len(system.dead_letters) < len(bad):
            await system.read()
        heard = {
            path: await asyncio.to_thread(read, port, path)
            for path in ("/metrics", "/view.json", "/story.json?id=good", "/story.json?id=bad")
        }
        heard |= await kept(system, system.catalogue)
    heard |= {log.name: log.read_bytes() for log in tmp_path.glob("*.log")}
    assert all(heard[name] for name in ("evidence", "progress", "pool_status", "router.log"))
    assert not [name for name, raw in heard.items() if PIECE.encode() in raw]
    # It was there to be heard.
    assert CANARY in str(good)
    assert any(PIECE.encode() in (letter.value or b"") for letter in system.dead_letters)
