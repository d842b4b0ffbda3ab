"""`shunter audit`: the audit trail."""

from typing import Annotated

import typer

from shunter.client import note, read_by_key, run
from shunter.console import AsJson, Bootstrap, Prefix, UserError, out, settings_from
from shunter.story import story
from topics import BadRecordError, Catalogue, Evidence, decode, encode

audit = typer.Typer(name="audit", help="Look into the audit trail.")


@audit.callback()
def _group() -> None:
    """Keep `show` a command by its name, though it is the only one."""


@audit.command()
def show(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="The id of a request.")],
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Tell the story of a request: each decision with its candidates, each step with its reason.

    Ends with exit code 1 when nothing is known of the id.

    Example: shunter audit show request-1
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    topic = Catalogue(settings).evidence
    steps = []
    for record in run(read_by_key(settings, topic, request_id.encode())):
        try:
            steps.append(decode(Evidence, record.value or b""))
        except BadRecordError as error:
            where = f"{topic}/{record.partition.number}@{record.offset}"
            note(f"{where} is left out: {error.message}")
    if not steps:
        raise UserError(
            f"nothing is known of request {request_id!r} on {topic} at"
            f" {settings.bootstrap_servers}: it has not been routed yet, its evidence is older than"
            " the topic keeps, or the id is another one"
        )
    steps.sort(key=lambda step: step.at)
    if as_json:
        typer.echo(encode(steps).decode())
    else:
        out.print(story(steps))
