"""Quotes over HTTP: what a request would cost and by when, and the request that takes an offer.

A quote is of one request under its id. Here clients know no ids beforehand, so the `quote_id` that
they get names both: the id, a colon, and what the routers made.
"""

import asyncio
from dataclasses import asdict, replace

from aiohttp import web

from gateway.api.refusals import refusal_of
from gateway.api.runs import Run, run_of_offer
from gateway.api.translation import QUOTE_SEPARATOR, Wanted
from gateway.exchange.publisher import UnavailableError
from gateway.exchange.request_ids import belongs_to
from gateway.http.errors import ApiError, json_response
from gateway.http.state import Gateway
from topics import InferenceRequest, QuoteAnswer, Result
from topics.records.quote_token import request_digest, said_in, wants_other
from topics.records.result import Timing

ANSWER_S_MAX = 15.0
_OFFER = ("deadline", "within_s", "tier", "cost_usd", "chance", "valid_until")


async def quote(
    gateway: Gateway,
    request_id: str,
    asked: Wanted,
    value: bytes,
    headers: list[tuple[str, bytes]],
) -> web.Response:
    """Ask what a request would cost, which doesn't run, and answer with the menu.

    Raises:
        ApiError: it is not quoted, with the reason.
        UnavailableError: Kafka does not take it, or no router answers in time.
    """
    with gateway.exchange.follow(request_id) as box:
        await gateway.exchange.publish(request_id, value, headers)
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                answer = await box.quote()
        except TimeoutError as error:
            raise UnavailableError(f"no router has answered within {ANSWER_S_MAX:g} s") from error
    told = {"x-request-id": request_id}
    if answer.error is not None:
        ended = Result(request_id, "rejected", Timing(answer.at), error=answer.error)
        refusal = refusal_of(ended, asked, gateway.fleet)
        refusal.headers |= told
        raise refusal
    return json_response(_menu(answer), headers=told)


def _menu(answer: QuoteAnswer) -> dict[str, object]:
    offers = []
    for offer in answer.offers:
        token = offer.quote_ids[answer.id]
        named = {name: value for name, value in asdict(offer).items() if name in _OFFER}
        offers.append(named | {"quote_id": f"{answer.id}{QUOTE_SEPARATOR}{token}"})
    return {"object": "shunter.quote", "id": answer.id, "offers": offers}


async def run_of_quote(gateway: Gateway, tenant: str, asked: Wanted, request_id: str) -> Run:
    """Return the run of a request that takes an offer; its result where it has ended before.

    Raises:
        ApiError: the offer was made to another tenant, or for another request (422).
        UnavailableError: Kafka does not answer.
    """
    terms = said_in(str(asked.fields["quote_id"]))
    sent = None if terms is None else _as_quoted(request_id, asked, terms.digest)
    # Routers know whether the offer is ours. What they reject has used up its id, and with it the
    # offer, so that who makes a mistake is told here.
    if terms is None or sent is None or not belongs_to(request_id, tenant):
        raise _altered(
            "the request is not the one that was quoted: model, body, task, slo, constraints and"
            " hints must be the same"
        )
    if wants_other(sent, terms):
        raise _altered(
            "shunter.deadline or service_tier is not that of the quote; leave them out, since the"
            " quote has them"
        )
    del sent
    asked.pack_body()
    run = await run_of_offer(gateway, tenant, asked, request_id)
    return replace(run, due_at=terms.due_at(gateway.clock.now()))


def _as_quoted(request_id: str, asked: Wanted, digest: str) -> InferenceRequest | None:
    """Return the request as it was quoted under an id; None where it is another, or can't be."""
    try:
        sent = InferenceRequest.model_validate({"id": request_id} | asked.fields)
        return sent if request_digest(sent) == digest else None
    except ValueError:
        return None


def _altered(message: str) -> ApiError:
    return ApiError(422, "quote_altered", message, param="shunter.quote_id")
