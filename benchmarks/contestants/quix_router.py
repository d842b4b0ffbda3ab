"""Quix Streams, exactly once, with the router's decision as its function.

``python -m benchmarks.contestants.quix_router``; a transaction for each 100 records, as the router.
"""

import os
from typing import Any

from quixstreams import Application

from benchmarks.contestants.decider import Decider


def main() -> None:
    """Run the application."""
    prefix = os.environ["SHUNTER_TOPIC_PREFIX"]
    app = Application(
        broker_address=os.environ["SHUNTER_BOOTSTRAP_SERVERS"],
        consumer_group=f"{prefix}.quix",
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_every=100,
        auto_create_topics=False,
        loglevel="ERROR",
        producer_extra_config={"message.max.bytes": 8_000_000},
    )
    raw = {"key_serializer": "bytes", "value_serializer": "bytes"}
    source = app.topic(f"{prefix}.requests", key_deserializer="bytes", value_deserializer="bytes")
    lanes = app.topic(f"{prefix}.pool.pool-000.direct", **raw)
    evidence = app.topic(f"{prefix}.evidence", **raw)
    decider = Decider()

    def route(value: bytes, key: bytes, _timestamp: int, _headers: Any) -> tuple[Any, Any]:
        placed, told = decider.route(value, key, 0, 0)
        return placed, told

    frame = app.dataframe(source).apply(route, metadata=True)
    placed = frame.apply(lambda pair: pair[0])
    placed = placed.set_headers(lambda record, *_: record.headers)
    placed.apply(lambda record: record.value).to_topic(lanes)
    frame.apply(lambda pair: pair[1].value).to_topic(evidence)
    app.run()


if __name__ == "__main__":
    main()
