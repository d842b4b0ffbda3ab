"""`shunter cancel`: a request that is not wanted any more."""

import asyncio
from typing import Annotated

import typer

from shunter.client.kafka import run
from shunter.client.submit import ACKNOWLEDGED_S_MAX, producer_of
from shunter.console import AsJson, Bootstrap, Prefix, UserError, out, settings_from
from topics import BadRecordError, Cancellation, Catalogue, Settings, encode, parse_cancellation
from topics.admin.provisioning import partition_counts


def cancel(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="The id of a request.")],
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why, for the result and the audit trail.")
    ] = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a request: one that waits ends as `cancelled`, one that runs is stopped if it can be.

    The command doesn't wait for that, nor know whether there is such a request; its result tells.
    A request of this id that comes within a day is cancelled too.

    Example: shunter cancel request-1 --reason "the user has left"
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    key = request_id.encode()
    try:
        parse_cancellation(key, None)
    except BadRecordError as error:
        raise UserError(f"{request_id!r:.60}: {error.message}") from error
    run(_publish(settings, key, encode(Cancellation(reason))))
    if as_json:
        typer.echo(encode({"id": request_id, "reason": reason}).decode())
        return
    told = f"cancellation of {request_id} published to {Catalogue(settings).cancellations}"
    out.print(told, highlight=False, soft_wrap=True)


async def _publish(settings: Settings, key: bytes, value: bytes) -> None:
    topic = Catalogue(settings).cancellations
    await partition_counts(settings, [topic])
    async with producer_of(settings) as producer:
        try:
            async with asyncio.timeout(ACKNOWLEDGED_S_MAX):
                await producer.send_and_wait(topic, value, key=key)
        except TimeoutError as error:
            raise UserError(
                f"no acknowledgement within {ACKNOWLEDGED_S_MAX:g} s; cancelling again is no harm"
            ) from error
