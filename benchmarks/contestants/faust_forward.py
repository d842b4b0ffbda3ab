"""A Faust agent that only forwards: ``python -m benchmarks.contestants.faust_forward``.

No transaction, no decision, no second record: each value goes on as it came.
"""

import os
import sys
import tempfile

import faust


def main() -> None:
    """Run the worker."""
    servers, prefix = os.environ["SHUNTER_BOOTSTRAP_SERVERS"], os.environ["SHUNTER_TOPIC_PREFIX"]
    app = faust.App(
        f"{prefix}-faust",
        broker=f"kafka://{servers}",
        value_serializer="raw",
        web_enabled=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        datadir=tempfile.mkdtemp(prefix="bench-faust-"),
    )
    source = app.topic(f"{prefix}.requests", value_serializer="raw", key_serializer="raw")
    lane = app.topic(f"{prefix}.evidence", value_serializer="raw", key_serializer="raw")

    @app.agent(source)
    async def forward(stream: faust.Stream) -> None:
        async for key, value in stream.items():
            await lane.send(key=key, value=value)

    sys.argv = ["faust", "worker", "-l", "error", "--without-web"]
    app.main()


if __name__ == "__main__":
    main()
