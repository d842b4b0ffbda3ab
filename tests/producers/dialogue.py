"""The dialogue with a producer program in Python: a line for a batch, a line for its outcome."""

import base64
import json
import os
import sys
from collections.abc import Callable
from typing import Any

Outcome = int | str


def converse(publish: Callable[[dict[str, Any]], list[Outcome]]) -> None:
    """Publish each batch that comes, and tell of each record its offset or what refused it.

    At the end of the input the process ends without a word to Kafka, so that what it left open
    stays open.
    """
    for line in sys.stdin:
        batch = json.loads(line)
        for record in batch["records"]:
            record["key"] = _bytes(record["key"])
            record["value"] = _bytes(record["value"])
            record["headers"] = [(name, _bytes(value)) for name, value in record["headers"]]
        print(json.dumps(publish(batch)), flush=True)
    os._exit(0)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
