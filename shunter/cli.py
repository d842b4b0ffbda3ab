"""The console script: each command is one thin file in ``shunter.commands``."""

import sys

import typer

from policies import DeclarationError
from shunter.commands.audit import audit
from shunter.commands.broker import broker
from shunter.commands.cancel import cancel
from shunter.commands.demo import demo
from shunter.commands.evidence import evidence
from shunter.commands.ledger import ledger
from shunter.commands.policy import policy
from shunter.commands.results import results
from shunter.commands.router import router
from shunter.commands.submit import submit
from shunter.commands.top import top
from shunter.commands.topics import topics
from shunter.commands.trace import trace
from shunter.commands.worker import worker
from shunter.console import UserError, complain
from streams.otel import TelemetryError
from topics.admin import AdminError

app = typer.Typer(
    name="shunter",
    help="A streaming router over Kafka for AI inference requests.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (demo, broker, router, worker, submit, cancel, results, trace, top, ledger):
    app.command()(command)
for group in (topics, policy, audit, evidence):
    app.add_typer(group)


def main() -> None:
    """Run the command line; an error that the user can mend is one message, not a traceback."""
    try:
        app()
    except (UserError, DeclarationError, AdminError, TelemetryError) as error:
        complain(str(error))
        sys.exit(1)
