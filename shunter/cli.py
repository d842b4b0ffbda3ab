"""The console script: each command is one thin file in ``shunter.commands``."""

import gc
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from traceback import format_exception
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from policies import DeclarationError
from shunter.command_tree import CommandTree
from shunter.console import UserError, complain
from streams.kafka.instance_name import NameTakenError
from streams.tracing.setup import TelemetryError
from topics.admin.provisioning import AdminError
from topics.credentials import masked
from topics.signing.key_files import KeyFileError
from topics.terminal_text import visible

# The place of each command: the function, or the group, of its name.
COMMANDS = {
    "demo": "shunter.commands.demo",
    "broker": "shunter.commands.broker",
    "router": "shunter.commands.router",
    "worker": "shunter.commands.worker",
    "gateway": "shunter.commands.gateway",
    "submit": "shunter.commands.submit",
    "quote": "shunter.commands.quote",
    "cancel": "shunter.commands.cancel",
    "results": "shunter.commands.results",
    "trace": "shunter.commands.trace",
    "top": "shunter.commands.top",
    "ledger": "shunter.commands.ledger",
    "plan": "shunter.commands.plan",
    "report": "shunter.commands.report",
    "topics": "shunter.commands.topics",
    "policy": "shunter.commands.policy",
    "hardware": "shunter.commands.hardware",
    "quality": "shunter.commands.quality",
    "audit": "shunter.commands.audit",
    "evidence": "shunter.commands.evidence",
}


# Errors that the user can mend: one message; all others are tracebacks.
MENDABLE = (
    UserError,
    DeclarationError,
    AdminError,
    KeyFileError,
    NameTakenError,
    TelemetryError,
)


class Commands(Mapping[str, Any]):
    """Imports a command when it is asked for: a worker that comes back needs no charts first."""

    def __getitem__(self, name: str) -> Any:
        """Return the command of this name."""
        return load(name)

    def __iter__(self) -> Iterator[str]:
        """Go through the names, in the order of the help."""
        return iter(COMMANDS)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(COMMANDS)


class CommandGroup(TyperGroup):
    """The group of all commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: Any = Commands()


def load(name: str) -> Any:
    """Import a command.

    Raises:
        KeyError: there is none of this name.
    """
    module = COMMANDS[name]
    # Imported objects stay: a garbage collection over them takes a tenth of a start.
    gc.disable()
    command = getattr(import_module(module), name)
    gc.freeze()
    gc.enable()
    if isinstance(command, typer.Typer):
        # Else "[env: NAME]" is taken for markup, and left out.
        command.rich_markup_mode = app.rich_markup_mode
        return typer.main.get_command(command)
    alone = CommandTree(add_completion=False, rich_markup_mode="markdown")
    alone.command(name)(command)
    return typer.main.get_command(alone)


app = typer.Typer(
    name="shunter",
    cls=CommandGroup,
    help="A streaming router over Kafka for AI inference requests.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"shunter {version('shunter')}")
        raise typer.Exit


@app.callback()
def _shunter(
    _is_asked: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Print the version, and end."
        ),
    ] = False,
) -> None:
    """Print the version, if that is asked for; all else is a command's."""


def main() -> None:
    """Run the command line; an error that the user can mend is one message, not a traceback."""
    sys.excepthook = _tell
    try:
        app()
    except MENDABLE as error:
        complain(str(error))
        sys.exit(1)


def _tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print what nobody expected, as the interpreter would, without credentials."""
    told = "".join(format_exception(kind, error, traceback))
    sys.stderr.write(visible(masked(told)))
