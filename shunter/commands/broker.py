"""``shunter broker``."""

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from topics.broker import KAFKA_VERSION, BrokerError, EmbeddedBroker


def broker(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 chooses a free one.")
    ] = 9092,
    data_dir: Annotated[
        Path, typer.Option(help="Where its data lives between runs; made when missing.")
    ] = Path(".shunter/kafka"),
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Keep nothing: a temporary data directory.")
    ] = False,
) -> None:
    """Run a real Apache Kafka on this machine until Ctrl-C; needs neither Docker nor Java.

    For development and demonstrations: one node, reachable from this machine only.

    Example: shunter broker --port 9092 --data-dir .shunter/kafka
    """
    console = Console(highlight=False, soft_wrap=True)
    kafka = EmbeddedBroker(
        port=port, data_dir=None if ephemeral else data_dir, announce=console.print
    )
    # SIGTERM then ends the wait as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with kafka:
            console.print(
                f"Apache Kafka {KAFKA_VERSION} listens on [bold]{kafka.bootstrap_servers}[/bold],"
                f" data in {kafka.data_dir}. Ctrl-C stops it."
            )
            kafka.wait()
    except KeyboardInterrupt:
        console.print("Apache Kafka has stopped.")
    except BrokerError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"shunter broker: {error}", markup=False
        )
        raise typer.Exit(1) from None
