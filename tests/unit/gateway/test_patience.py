"""How long a gateway waits for an answer that never comes, and what becomes of the request."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from gateway.exchange.mailbox import Mailbox, PiecesBefore
from gateway.exchange.request_ids import new_id
from gateway.server import listening, make_gateway
from streams.engine.clock import SystemClock
from topics import InferenceRequest, Result, Settings, StreamPiece, encode
from topics.records.quote_token import QuoteTerms, request_digest, token_of

S_MAX = 0.4
PATH = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


class Silent:
    """An exchange whose requests nobody works on; of streams come so many pieces."""

    def __init__(self, pieces: int = 0) -> None:
        self.cancelled: dict[str, str] = {}
        self._pieces = pieces
        self.catalogue = make_gateway(Settings(bootstrap_servers="127.0.0.1:1")).exchange.catalogue

    @contextlib.contextmanager
    def follow(self, request_id: str) -> Any:
        """Provide the box that the pieces come into, one each half of the limit."""
        box = Mailbox(request_id)
        telling = asyncio.ensure_future(self._tell(box))
        yield box
        telling.cancel()

    async def _tell(self, box: Mailbox) -> None:
        for index in range(self._pieces):
            await asyncio.sleep(S_MAX / 2)
            chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": f"{index} "}}]}
            box.put_piece(encode(StreamPiece(box.request_id, 1, index, 0.0, chunk)), index)

    async def publish(self, *_: Any, **__: Any) -> None:
        """Take a request."""

    async def cancel(self, request_id: str, reason: str) -> None:
        """Take a cancellation."""
        self.cancelled[request_id] = reason

    async def result(self, _request_id: str, since: float | None = None) -> Result | None:
        """There is none."""
        return None

    async def pieces(self, _request_id: str, _since: float) -> PiecesBefore:
        """There are none."""
        return PiecesBefore([], 0)


@contextlib.asynccontextmanager
async def before(exchange: Silent) -> AsyncIterator[str]:
    """A gateway before such an exchange."""
    settings = Settings(gateway_port=0, bootstrap_servers="127.0.0.1:1", gateway_answer_s_max=S_MAX)
    gateway = make_gateway(settings)
    gateway.exchange = exchange  # type: ignore[assignment]
    async with listening(gateway) as port:
        yield f"http://127.0.0.1:{port}{PATH}"


async def post(url: str, **own: Any) -> tuple[int, str, str]:
    """Status, body and request of the answer."""
    headers = {"Authorization": "Bearer k"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=BODY | own, headers=headers) as answer,
    ):
        return answer.status, await answer.text(), answer.headers["x-request-id"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_nobody_answers_is_given_up_and_cancelled(*, stream: bool) -> None:
    exchange = Silent()
    async with before(exchange) as url:
        status, told, request = await asyncio.wait_for(post(url, stream=stream), 60)
    assert status == 504
    assert '"answer_timeout"' in told
    assert "SHUNTER_GATEWAY_ANSWER_S_MAX" in told
    assert exchange.cancelled == {request: f"nothing came of the request within {S_MAX:g} s"}


async def test_a_stream_is_waited_for_while_pieces_come() -> None:
    exchange = Silent(pieces=4)
    async with before(exchange) as url:
        status, told, request = await asyncio.wait_for(post(url, stream=True), 60)
    assert (status, [f'"{index} "' in told for index in range(4)]) == (200, [True] * 4)
    assert told.count("answer_timeout") == 1
    assert list(exchange.cancelled) == [request]


async def test_a_deadline_of_the_client_alone_counts() -> None:
    exchange, began = Silent(), time.monotonic()
    async with before(exchange) as url:
        status, told, _ = await post(url, shunter={"deadline": f"{3 * S_MAX:g}s"})
    assert (status, '"deadline_exceeded"' in told) == (504, True)
    assert time.monotonic() - began >= 3 * S_MAX
    # Routers and workers end it themselves.
    assert exchange.cancelled == {}


async def test_who_took_an_offer_waits_until_after_it() -> None:
    exchange, began = Silent(), time.monotonic()
    request_id = new_id("default", SystemClock().now())
    sent = InferenceRequest(id=request_id, url=PATH, body=BODY, model="m")
    terms = QuoteTerms(request_digest(sent), "auto", None, 3 * S_MAX, 0.9, 1, 2e9)
    quote_id = f"{request_id}:{token_of(b'secret', terms)}"
    async with before(exchange) as url:
        status, told, request = await post(url, shunter={"quote_id": quote_id})
    assert (status, '"answer_timeout"' in told, request) == (504, True, request_id), told
    assert time.monotonic() - began >= 4 * S_MAX
