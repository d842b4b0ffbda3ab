"""Quotes over HTTP: what a request would cost and by when, and the request that takes an offer.

A quote is of one request under its id. Here clients know no ids beforehand, so the `quote_id` that
they get names both: the id, a colon, and what the routers made.
"""

import asyncio
from dataclasses import asdict

from aiohttp import web

from gateway.api.refusals import refusal_of
from gateway.api.runs import Run
from gateway.api.translation import QUOTE_SEPARATOR, Wanted
from gateway.exchange.publisher import UnavailableError
from gateway.exchange.request_ids import belongs_to, made_at
from gateway.http.errors import ApiError, json_response
from gateway.http.state import Gateway
from topics import InferenceRequest, QuoteAnswer, Result
from topics.records.quote_token import digest_in, due_in, request_digest
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
    if not (belongs_to(request_id, tenant) and _is_quoted(request_id, asked)):
        raise ApiError(
            422,
            "quote_altered",
            "the request is not the one that was quoted: model, body, task, slo, constraints and"
            " hints must be the same",
            param="shunter.quote_id",
        )
    result = await gateway.exchange.result(request_id, since=made_at(request_id))
    due_at = due_in(str(asked.fields["quote_id"]), gateway.clock.now())
    return Run(request_id, is_joined=result is not None, result=result, due_at=due_at)


def _is_quoted(request_id: str, asked: Wanted) -> bool:
    """Return whether an offer says that it is for this request; routers know whether that is so."""
    try:
        sent = InferenceRequest.model_validate({"id": request_id} | asked.fields)
        return digest_in(str(sent.quote_id)) == request_digest(sent)
    except ValueError:
        return False
