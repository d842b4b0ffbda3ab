"""The dialogue with a program in Python: a line says what to publish or read, a line answers.

``{"read": TOPIC, "partitions": NUMBER, "count": RECORDS}`` asks for all that is committed, at least
so many records: partition, offset, key, SHA-256 of the value and headers of each. Other lines are
batches.
"""

import base64
import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

Outcome = int | str
# Nothing more comes where nothing has come for so long.
MORE_S = 1.0


def converse(
    publish: Callable[[dict[str, Any]], list[Outcome]],
    read: Callable[[dict[str, Any]], list[list[Any]]],
) -> None:
    """Publish each batch that comes, and tell of each record its offset or what refused it.

    At the end of the input the process ends without a word to Kafka, so that what it left open
    stays open.
    """
    for line in sys.stdin:
        batch = json.loads(line)
        if "read" in batch:
            print(json.dumps(read(batch)), flush=True)
            continue
        for record in batch["records"]:
            record["key"] = _bytes(record["key"])
            record["value"] = _bytes(record["value"])
            record["headers"] = [(name, _bytes(value)) for name, value in record["headers"]]
        print(json.dumps(publish(batch)), flush=True)
    os._exit(0)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def told(partition: int, offset: int, key: Any, value: Any, headers: Any) -> list[Any]:
    """Return a record that was read as it is told."""
    named = [[name, _text(of)] for name, of in headers or ()]
    digest = None if value is None else hashlib.sha256(value).hexdigest()
    return [partition, offset, _text(key), digest, named]


def _text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()
