"""`shunter trace`."""

import dataclasses
import re
from typing import Annotated

import orjson
import typer

from shunter.client.kafka import note, read_by_key, run
from shunter.console import AsJson, Bootstrap, Prefix, UserError, out, settings_from
from shunter.jaeger import Span, find_trace_ids, read_services, read_trace
from shunter.render.trace_tree import tree
from topics import BadRecordError, Catalogue, Result, Settings, decode
from topics.admin.provisioning import AdminError

_TRACE_ID = re.compile(r"[0-9a-f]{32}")


def trace(
    name: Annotated[str, typer.Argument(metavar="ID", help="Id of a request, or of a trace.")],
    jaeger: Annotated[
        str | None,
        typer.Option(
            "--jaeger", metavar="URL", help="Page of a Jaeger.  [env: SHUNTER_JAEGER_URL]"
        ),
    ] = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Show the trace of a request as a tree: where it went, why, what it waited for, what ran it.

    The trace of a request is found by its result, or by Jaeger where there is no result or no
    Kafka. The exit code is 1 where there is no trace.

    Example: shunter trace request-1
    """
    settings = settings_from(
        bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, jaeger_url=jaeger
    )
    spans = run(_find(settings, name))
    if not spans:
        raise UserError(
            f"{settings.jaeger_url} has no trace of {name!r}: it was not sampled, is not traced"
            " (docs/tracing.md), or Jaeger keeps it no more; see `shunter audit show`"
        )
    if as_json:
        typer.echo(orjson.dumps([dataclasses.asdict(span) for span in spans]).decode())
    else:
        out.print(tree(spans))


async def _find(settings: Settings, name: str) -> list[Span]:
    url = settings.jaeger_url
    if _TRACE_ID.fullmatch(name):
        return await read_trace(url, name)
    # Jaeger first: it needs no Kafka; but it can't tell a request from a later one of its id.
    # Services may have any name; ours come first where they have their own.
    services = sorted(await read_services(url), key=lambda each: not each.startswith("shunter-"))
    for service in services:
        found = await find_trace_ids(url, service, {"messaging.message.id": name})
        for trace_id in found:
            spans = await read_trace(url, trace_id)
            # A batch's own trace names its members in links only.
            if any(span.attributes.get("messaging.message.id") == name for span in spans):
                if len(found) > 1:
                    note(f"{len(found)} traces have this request; the first is shown")
                return spans
    told = await _by_result(settings, name)
    return [] if told is None else await read_trace(url, told)


async def _by_result(settings: Settings, name: str) -> str | None:
    """Return the trace id that the result of a request names, None where there is none."""
    try:
        records = await read_by_key(settings, Catalogue(settings).results, name.encode())
        found = [decode(Result, record.value or b"") for record in records]
    except (AdminError, BadRecordError):
        return None
    return next((result.trace_id for result in reversed(found) if result.trace_id), None)
