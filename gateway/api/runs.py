"""One request from its publication to its result, whoever comes for it and whoever leaves."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from gateway.api.translation import Wanted
from gateway.exchange.claims import HeldKey, first_run
from gateway.exchange.mailbox import Mailbox
from gateway.exchange.publisher import UnavailableError
from gateway.exchange.request_ids import keyed_id, made_at
from gateway.http.errors import ApiError, as_unicode
from gateway.http.spans import HeaderList, HttpSpan
from gateway.http.state import Gateway
from topics import KeyClaim, Result, encode
from topics.openai_api.failures import failure_of

KEY_CHARACTERS_MAX = 255
# How a request ended so that another try may do better.
_RUN_ANEW = frozenset({409, 429, 502, 503})
# How often it is told that somebody waits, while others would wait for a client to come back.
STAYING = 3
_LEFT = "its client has left"
_UNSURE = "its client was told that Kafka does not take it"
# How long, and how often, it is tried to cancel a request while Kafka does not answer.
CANCEL_S_MAX, CANCEL_AGAIN_S = 300.0, 0.5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """An ``Idempotency-Key`` of a tenant for a path."""

    tenant: str
    path: str
    text: str

    @property
    def name(self) -> str:
        """The key of its claims."""
        return keyed_id(self.tenant, self.path, self.text)

    def request_id(self, run: int) -> str:
        """Return the id of one of its requests."""
        return keyed_id(self.tenant, self.path, self.text, run)


@dataclass(frozen=True, slots=True)
class OfferKey(Key):
    """The key of an offer that was taken: ``text`` is the one request that it is for."""

    def request_id(self, run: int) -> str:
        """Return the id of the request."""
        del run
        return self.text


@dataclass(frozen=True, slots=True)
class Run:
    """A request to answer: its id, and its result where it has ended before.

    ``is_joined`` is true where another request has begun it, at ``begun_at`` (epoch seconds).
    ``due_at`` is by when a quote that it takes promises it, by what the quote says; 0 without one.
    """

    request_id: str
    key: Key | None = None
    is_joined: bool = False
    result: Result | None = None
    begun_at: float = 0.0
    due_at: float = 0.0


def key_of(tenant: str, path: str, text: str) -> Key:
    """Return a client's key. Raises ApiError where it can't be one."""
    if not 1 <= len(text) <= KEY_CHARACTERS_MAX:
        message = f"Idempotency-Key has 1 to {KEY_CHARACTERS_MAX} characters"
        raise ApiError(400, "invalid_value", message, param="Idempotency-Key")
    if as_unicode(text) != text:
        message = "Idempotency-Key is no UTF-8"
        raise ApiError(400, "invalid_value", message, param="Idempotency-Key")
    return Key(tenant, path, text)


def reused() -> ApiError:
    """Return the error for a key that came with another body before."""
    message = "this Idempotency-Key came with another body; take a new key for a new request"
    return ApiError(422, "idempotency_key_reused", message, param="Idempotency-Key")


async def run_of(gateway: Gateway, key: Key, wanted: Wanted) -> Run:
    """Return the run of a key: a new one, the one that goes on, or the one that has ended.

    Raises:
        ApiError: the key came with another body before (422).
        UnavailableError: Kafka does not answer.
    """
    held, token = gateway.claims.find(key.name), secrets.token_hex(8)
    run = first_run(gateway.clock.now()) if held is None else held.claim.run
    if held is None:
        await _claim(gateway, key, wanted, run, token)
    while True:
        held = await _seen(gateway, key, run)
        run = held.claim.run
        if held.claim.digest != wanted.digest:
            raise reused()
        request_id = key.request_id(run)
        if held.claim.token == token:
            return Run(request_id, key)
        began_at = held.claim.at
        # Before the search: whoever leaves then knows that somebody is there.
        await _claim(gateway, key, wanted, run, token)
        result = await gateway.exchange.result(request_id, since=began_at)
        if result is None:
            return Run(request_id, key, is_joined=True, begun_at=began_at)
        if not _may_do_better(result):
            return Run(request_id, key, is_joined=True, result=result)
        run += 1
        await _claim(gateway, key, wanted, run, token)


def _may_do_better(result: Result) -> bool:
    failure = failure_of(result)
    return failure is not None and failure.status_code in _RUN_ANEW


async def run_of_offer(gateway: Gateway, tenant: str, wanted: Wanted, request_id: str) -> Run:
    """Return the run of a request that takes an offer: a new one, or the one that was begun.

    Whoever takes it again, since a connection broke, finds it as with a key: it runs on for a while
    when its client leaves.

    Raises:
        UnavailableError: Kafka does not answer.
    """
    key, token = OfferKey(tenant, "quote", request_id), secrets.token_hex(8)
    await _claim(gateway, key, wanted, 0, token)
    first = (await _seen(gateway, key, 0)).claim
    result = await gateway.exchange.result(request_id, since=made_at(request_id))
    is_joined = first.token != token or result is not None
    return Run(request_id, key, is_joined, result, begun_at=first.at)


async def _claim(gateway: Gateway, key: Key, wanted: Wanted, run: int, token: str) -> None:
    claim = KeyClaim(run, wanted.digest, token, gateway.clock.now())
    await gateway.exchange.send(gateway.exchange.catalogue.claims, key.name, encode(claim))


async def _seen(gateway: Gateway, key: Key, run: int) -> HeldKey:
    try:
        return await gateway.claims.seen(key.name, run)
    except TimeoutError as error:
        raise UnavailableError("Kafka does not give back what it took") from error


@contextlib.asynccontextmanager
async def followed(
    gateway: Gateway,
    run: Run,
    value: bytes,
    headers: HeaderList,
    span: HttpSpan,
    session: str | None = None,
) -> AsyncIterator[Mailbox]:
    """Publish a request and provide what comes of it; cancel it if its client leaves.

    One that Kafka may have, though it did not say so in time, is cancelled too: its client is told
    to ask again.

    A run that was joined is published again: whoever began it may have died before it did so, and
    routers serve an id once.

    Raises:
        UnavailableError: Kafka is not known to have the request.
    """
    with gateway.exchange.follow(run.request_id) as box:
        staying: asyncio.Task[None] | None = None
        try:
            if run.result is None:
                await _publish(gateway, run.request_id, value, headers, span, session)
                del value
                if run.key is not None:
                    staying = asyncio.create_task(_stay(gateway, run.key, run))
            yield box
        except (asyncio.CancelledError, ConnectionError):
            is_over = box.has_result or run.result is not None
            # A process that stops breaks off what is open: with a key it is asked for elsewhere.
            if not is_over and not (gateway.is_stopping and run.key is not None):
                abandon(gateway, run, _LEFT)
            raise
        except UnavailableError as error:
            if error.may_be_there and not box.has_result:
                abandon(gateway, run, _UNSURE)
            raise
        finally:
            if staying is not None:
                staying.cancel()


async def _publish(
    gateway: Gateway,
    request_id: str,
    value: bytes,
    headers: HeaderList,
    span: HttpSpan,
    session: str | None,
) -> None:
    publication = span.publication(request_id)
    headers = headers + span.headers(publication)
    try:
        await gateway.exchange.publish(request_id, value, headers, session=session)
    except UnavailableError as error:
        if publication is not None:
            publication.end(("unavailable", str(error)))
        raise
    if publication is not None:
        publication.end()


def give_up(gateway: Gateway, run: Run) -> None:
    """Cancel a request whose answer can't be used any more, unless it has a key."""
    if run.key is None:
        gateway.begin(_cancel(gateway, run.request_id, "its stream was interrupted"))


def abandon(gateway: Gateway, run: Run, reason: str) -> None:
    """Cancel a request that nobody waits for; with a key only once nobody comes for it again."""
    gateway.begin(_left(gateway, run, reason))


async def _stay(gateway: Gateway, key: Key, run: Run) -> None:
    """Tell again and again that somebody waits, for another gateway whose client leaves."""
    held = gateway.claims.find(key.name)
    while held is not None and key.request_id(held.claim.run) == run.request_id:
        await asyncio.sleep(max(gateway.settings.gateway_reclaim_s / STAYING, 0.1))
        claim = replace(held.claim, at=gateway.clock.now())
        with contextlib.suppress(UnavailableError):
            await gateway.exchange.send(gateway.exchange.catalogue.claims, key.name, encode(claim))
        held = gateway.claims.find(key.name)


async def _left(gateway: Gateway, run: Run, reason: str) -> None:
    left_at = gateway.clock.now()
    if run.key is not None:
        await asyncio.sleep(gateway.settings.gateway_reclaim_s)
        held = gateway.claims.find(run.key.name)
        has_come_back = held is not None and held.joined_at >= left_at
        if has_come_back or gateway.exchange.is_followed(run.request_id):
            return
    await _cancel(gateway, run.request_id, reason)


async def _cancel(gateway: Gateway, request_id: str, reason: str) -> None:
    """Cancel a request, as soon as Kafka takes that; what nobody waits for costs money."""
    give_up_at = gateway.clock.now() + CANCEL_S_MAX
    while True:
        try:
            return await gateway.exchange.cancel(request_id, reason)
        except UnavailableError as error:
            logger.warning("%s runs on: %s", request_id, error)
        if gateway.clock.now() > give_up_at:
            return None
        await asyncio.sleep(CANCEL_AGAIN_S)
