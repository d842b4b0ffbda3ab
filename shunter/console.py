"""Shared parts of all commands: settings from flags, consoles, error messages."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from topics import Settings
from topics.credentials import masked
from topics.terminal_text import visible


class PlainConsole(Console):
    """A console for foreign text: markup is ignored, control characters are escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the output; only the console itself may send terminal controls."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


out = PlainConsole()
err = PlainConsole(stderr=True)
PIPED_WIDTH = 140


def wide_out() -> Console:
    """Return the console for a wide table: wider if piped, as 80 columns would cut it."""
    return out if out.is_terminal else PlainConsole(width=PIPED_WIDTH)


Bootstrap = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        help="Kafka brokers.  [env: SHUNTER_BOOTSTRAP_SERVERS]",
        metavar="HOST:PORT",
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        "--topic-prefix", help="What topic names begin with.  [env: SHUNTER_TOPIC_PREFIX]"
    ),
]
FleetFile = Annotated[
    Path | None,
    typer.Option(
        "--fleet", help="Fleet YAML, or `full`; packaged where not given.  [env: SHUNTER_FLEET]"
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="Policy YAML; packaged where not given.  [env: SHUNTER_POLICY]"),
]
Instance = Annotated[
    str | None,
    typer.Option(
        "--instance",
        help="Stable name of this process; the host's, with a number where several run there, where"
        " not given.  [env: SHUNTER_INSTANCE]",
    ),
]
ArchiveUrl = Annotated[
    str | None,
    typer.Option(
        "--archive", help="Read this archive, a directory or URL, in place of Kafka.", metavar="URL"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


class UserError(Exception):
    """An error that the user can mend; the message says what, where, and the remedy."""


def settings_from(**flags: Any) -> Settings:
    """Return the settings of the environment, overridden by the given flags.

    Raises:
        UserError: naming the variable and what is wrong with its value.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = [
            f"SHUNTER_{'_'.join(map(str, p['loc'])).upper()}: {p['msg']} (got {p['input']!r:.60})"
            for p in error.errors(include_url=False)
        ]
        raise UserError("\n".join(problems)) from error


def read_input(file: Path) -> bytes:
    """Return the content of a file that the user named; - is standard input.

    Raises:
        OSError: there is none, or it can't be read.
    """
    return sys.stdin.buffer.read() if is_standard_input(file) else file.read_bytes()


def read_declared(file: Path) -> str:
    """Return the text of a file that the user named; - is standard input.

    Raises:
        UserError: there is none, it can't be read, or it is no UTF-8.
    """
    try:
        return read_input(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{named(file)}: can't be read: {error}") from error


def is_standard_input(file: Path) -> bool:
    """Tell whether a name that the user gave means standard input."""
    return str(file) == "-"


def named(file: Path) -> str:
    """Return what messages call a file that the user named."""
    return "standard input" if is_standard_input(file) else str(file)


def check_writable(*files: Path | None) -> None:
    """Check before the work that files which the user named can be written after it.

    Raises:
        UserError: one can't.
    """
    for file in files:
        # To open a pipe and to close it would end it.
        if file is None or (file.exists() and not (file.is_file() or file.is_dir())):
            continue
        is_new = not file.exists()
        try:
            with file.open("ab"):
                pass
            if is_new:
                file.unlink()
        except OSError as error:
            raise UserError(f"{file}: can't be written: {error.strerror}") from error


def write_output(file: Path, content: bytes) -> None:
    """Write a file that the user named.

    Raises:
        UserError: it can't be written.
    """
    try:
        file.write_bytes(content)
    except OSError as error:
        raise UserError(f"{file}: can't be written: {error.strerror}") from error


def complain(message: str) -> None:
    """Print an error for people."""
    err.print("error: ", end="", style="bold red", highlight=False)
    err.print(masked(message), highlight=False, soft_wrap=True)
