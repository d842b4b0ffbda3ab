"""``shunter broker``."""

import logging
import signal
import threading
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from shunter.console import AsJson
from topics.embedded_broker.broker import KAFKA_VERSION, BrokerError, EmbeddedBroker
from topics.embedded_broker.cluster import EmbeddedCluster
from topics.embedded_broker.jvm import record_archive

logger = logging.getLogger(__name__)

# Behind whatever else the machine does.
NICENESS = 19


def broker(
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            help="Port on 127.0.0.1, and of further nodes those after it; 0 chooses free ones.",
        ),
    ] = 9092,
    data_dir: Annotated[
        Path, typer.Option(help="Where its data lives between runs; made when missing.")
    ] = Path(".shunter/kafka"),
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Keep nothing: temporary data directories.")
    ] = False,
    nodes: Annotated[
        int,
        typer.Option(min=1, max=9, help="Brokers; three keep each record three times."),
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Run a real Apache Kafka on this machine until Ctrl-C; needs neither Docker nor Java.

    For development and demonstrations, reachable from this machine only: one node, or several to
    see what becomes of work when one of them dies, for 400 MB of memory each.

    Example: shunter broker --nodes 3 --data-dir .shunter/three
    """
    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    kept = None if ephemeral else data_dir
    # SIGTERM then ends the wait as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        kafka: EmbeddedBroker | EmbeddedCluster
        if nodes == 1:
            kafka = EmbeddedBroker(port=port, data_dir=kept, announce=console.print)
        else:
            kafka = EmbeddedCluster(nodes, port=port, data_dir=kept, announce=console.print)
        with kafka:
            each = kafka.nodes if isinstance(kafka, EmbeddedCluster) else [kafka]
            if as_json:
                processes = [{"pid": one.pid, "data_dir": str(one.data_dir)} for one in each]
                told = {"bootstrap_servers": kafka.bootstrap_servers, "nodes": processes}
                typer.echo(orjson.dumps(told).decode())
            else:
                places = ", ".join(f"{one.data_dir} (process {one.pid})" for one in each)
                console.print(
                    f"Apache Kafka {KAFKA_VERSION} listens on"
                    f" [bold]{kafka.bootstrap_servers}[/bold], data in {places}. Ctrl-C stops it."
                )
            threading.Thread(target=_record_archive, daemon=True).start()
            kafka.wait()
    except KeyboardInterrupt:
        console.print("Apache Kafka has stopped.")
    except BrokerError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"shunter broker: {error}", markup=False
        )
        raise typer.Exit(1) from None


def _record_archive() -> None:
    """Have later starts take half the time; they can do without."""
    try:
        record_archive(niceness=NICENESS)
    except (BrokerError, OSError) as error:
        logger.warning("Kafka will start as slowly the next time: %s", error)
