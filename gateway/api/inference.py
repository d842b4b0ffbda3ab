"""The operations of models: one handler, from the body to the answer."""

import contextlib
from collections.abc import Iterator

from aiohttp import web

from gateway.api.answers import answer_headers
from gateway.api.patience import Patience
from gateway.api.quotes import quote, run_of_quote
from gateway.api.refusals import refusal_of
from gateway.api.responses_output import body_in_form
from gateway.api.runs import Run, followed, key_of, run_of
from gateway.api.streams import StreamedAnswer
from gateway.api.translation import Wanted, wanted
from gateway.exchange.mailbox import Mailbox
from gateway.http.bodies import read_json
from gateway.http.body_room import BodyShare
from gateway.http.errors import ApiError, json_response, overloaded
from gateway.http.keys import ApiKey
from gateway.http.state import GATEWAY, REQUEST_ID, SPAN, Gateway, caller_of
from topics import Result


async def infer(request: web.Request) -> web.StreamResponse:
    """Answer a chat completion, a response, a completion, embeddings or a moderation."""
    gateway, caller = request.app[GATEWAY], caller_of(request)
    settings = gateway.settings
    began_at = gateway.clock.now()
    bytes_max, s_max = settings.request_bytes_max, settings.gateway_read_s_max
    with gateway.bodies.share() as share:
        asked = wanted(
            request.path,
            await read_json(request, bytes_max, s_max, share),
            request.headers,
            caller.tenant,
            began_at,
            default_model=gateway.fleet.default_model(request.path),
        )
        with _turn(gateway, f"{caller.tenant}\0{asked.digest}".encode()):
            return await _run(gateway, request, asked, share)


@contextlib.contextmanager
def _turn(gateway: Gateway, name: bytes) -> Iterator[None]:
    """Take one of the places at this gateway.

    Raises:
        ApiError: none is free, or those that are free are for who came before (503).
    """
    places = gateway.places
    wait_s = places.take(name, gateway.clock.now())
    if wait_s > 0:
        raise overloaded(places.most, wait_s)
    try:
        yield
    finally:
        places.leave(gateway.clock.now())


async def _run(
    gateway: Gateway, request: web.Request, asked: Wanted, share: BodyShare
) -> web.StreamResponse:
    settings, caller = gateway.settings, caller_of(request)
    run, session = Run(request[REQUEST_ID]), asked.session
    if asked.quoted_as is not None:
        run = await run_of_quote(gateway, caller.tenant, asked, asked.quoted_as)
        request[REQUEST_ID] = run.request_id
    elif (text := request.headers.get("Idempotency-Key")) is not None and not asked.asks_quote:
        asked.pack_body()
        run = await run_of(gateway, key_of(caller.tenant, request.path, text), asked)
        request[REQUEST_ID] = run.request_id
    value = asked.value(run.request_id)
    if len(value) > settings.request_bytes_max:
        raise ApiError(
            413,
            "request_too_large",
            f"the request has {len(value):,} bytes with what the gateway adds; the limit is"
            f" {settings.request_bytes_max:,} (SHUNTER_REQUEST_BYTES_MAX)",
        )
    span = request[SPAN]
    headers = gateway.proofs.headers(caller.key_id, run.request_id, caller.tenant)
    if asked.asks_quote:
        return await quote(gateway, run.request_id, asked, value, headers + span.headers())
    if not run.is_joined:
        _charge_when_ended(gateway, caller.key, run.request_id)
    following = followed(gateway, run, value, headers, span, session)
    # Requests may be open for hours.
    asked.forget_body()
    del value
    async with following as box:
        share.leave()
        return await _answered(gateway, request, run, asked, box)


async def _answered(
    gateway: Gateway, request: web.Request, run: Run, asked: Wanted, box: Mailbox
) -> web.StreamResponse:
    headers = {"x-request-id": run.request_id}
    if run.is_joined:
        headers["idempotent-replayed"] = "true"
    patience = Patience(gateway, run, asked)
    streamed = (
        StreamedAnswer(gateway, request, run, asked, box, patience.heard)
        if asked.is_streamed
        else None
    )
    try:
        async with patience.limit():
            if streamed is not None:
                return await streamed.send(headers)
            result = await _result(run, box)
    except ApiError as error:
        error.headers |= headers
        raise
    except TimeoutError:
        late = patience.give_up()
        late.headers |= headers
        if streamed is not None:
            return await streamed.expire(late)
        raise late from None
    if result.status != "completed":
        refusal = refusal_of(result, asked, gateway.fleet)
        refusal.headers |= headers | answer_headers(result)
        raise refusal
    return json_response(body_in_form(result, asked), headers=headers | answer_headers(result))


def _charge_when_ended(gateway: Gateway, key: ApiKey | None, request_id: str) -> None:
    """Count what a request uses when it ends, also where its client has left by then."""
    if key is not None and key.limits.counts_use:
        gateway.exchange.when_ended(
            request_id,
            lambda result: gateway.key_limits.charge(key, result, gateway.clock.now()),
        )


async def _result(run: Run, box: Mailbox) -> Result:
    return await box.result() if run.result is None else run.result
