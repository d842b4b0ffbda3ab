"""How long a gateway waits for an answer that never comes, and what becomes of the request."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from gateway.exchange.mailbox import Mailbox, PiecesBefore
from gateway.exchange.request_ids import new_id
from gateway.server import listening, make_gateway
from streams.engine.clock import SystemClock
from streams.engine.log import Partition, Record
from topics import InferenceRequest, Result, Settings, StreamPiece, encode
from topics.records.quote_token import QuoteTerms, request_digest, token_of

S_MAX, RECLAIM_S = 0.4, 1.0
PATH = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


class Silent:
    """An exchange whose requests nobody works on; of streams come so many pieces."""

    def __init__(self, pieces: int = 0) -> None:
        self.cancelled: dict[str, str] = {}
        self.published: list[str] = []
        self.claimed: Callable[[Record], None] = lambda _: None
        self._open: Counter[str] = Counter()
        self._pieces = pieces
        self.catalogue = make_gateway(Settings(bootstrap_servers="127.0.0.1:1")).exchange.catalogue

    @contextlib.contextmanager
    def follow(self, request_id: str) -> Any:
        """Provide the box that the pieces come into, one each half of the limit."""
        box = Mailbox(request_id)
        telling = asyncio.ensure_future(self._tell(box))
        self._open[request_id] += 1
        try:
            yield box
        finally:
            self._open[request_id] -= 1
            telling.cancel()

    async def _tell(self, box: Mailbox) -> None:
        for index in range(self._pieces):
            await asyncio.sleep(S_MAX / 2)
            chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": f"{index} "}}]}
            box.put_piece(encode(StreamPiece(box.request_id, 1, index, 0.0, chunk)), index)

    async def publish(self, request_id: str, *_: Any, **__: Any) -> None:
        """Take a request."""
        self.published.append(request_id)

    async def send(self, topic: str, key: str, value: bytes | None) -> None:
        """Take a claim, which comes back."""
        self.claimed(Record(Partition(topic, 0), 0, key.encode(), value, (), 0))

    def is_followed(self, request_id: str) -> bool:
        """Return whether somebody waits for a request."""
        return self._open[request_id] > 0

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
async def before(exchange: Silent, s_max: float = S_MAX) -> AsyncIterator[str]:
    """A gateway before such an exchange."""
    settings = Settings(
        gateway_port=0,
        bootstrap_servers="127.0.0.1:1",
        gateway_answer_s_max=s_max,
        gateway_reclaim_s=RECLAIM_S,
    )
    gateway = make_gateway(settings)
    gateway.exchange = exchange  # type: ignore[assignment]
    exchange.claimed = gateway.claims.take
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


def offer(within_s: float = 3 * S_MAX, tier: str = "auto") -> tuple[str, dict[str, Any]]:
    """A request's id, and the wish that takes an offer to it."""
    request_id = new_id("default", SystemClock().now())
    sent = InferenceRequest(id=request_id, url=PATH, body=BODY, model="m")
    terms = QuoteTerms(request_digest(sent), tier, None, within_s, 0.9, 1, 2e9)
    return request_id, {"quote_id": f"{request_id}:{token_of(b'secret', terms)}"}


async def test_who_took_an_offer_waits_until_after_it() -> None:
    exchange, began, (request_id, take) = Silent(), time.monotonic(), offer()
    async with before(exchange) as url:
        status, told, request = await post(url, shunter=take)
    assert (status, '"answer_timeout"' in told, request) == (504, True, request_id), told
    assert time.monotonic() - began >= 4 * S_MAX


@pytest.mark.parametrize("has_retried", [False, True])
async def test_who_leaves_and_takes_its_offer_again_finds_it_running(*, has_retried: bool) -> None:
    """An offer is taken once: what was cancelled at once could not be had again."""
    exchange, (request_id, take) = Silent(), offer()
    async with before(exchange, s_max=60.0) as url:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(post(url, shunter=take), RECLAIM_S / 2)
        assert exchange.cancelled == {}
        again = asyncio.ensure_future(post(url, shunter=take)) if has_retried else None
        await asyncio.sleep(2 * RECLAIM_S)
        assert list(exchange.cancelled) == ([] if again else [request_id])
        if again is not None:
            again.cancel()
    assert exchange.published == [request_id] * (2 if again else 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 7},
        {"service_tier": "priority"},
        {"shunter": {"deadline": "1s"}},
        {"shunter": {"hints": {"output_tokens": 1}}},
    ],
)
async def test_a_mistake_does_not_use_up_the_offer(wrong: dict[str, Any]) -> None:
    """A router would reject it for good, under the only id that the offer is for."""
    exchange, (_, take) = Silent(), offer()
    async with before(exchange) as url:
        own = wrong | {"shunter": take | wrong.get("shunter", {})}
        status, told, _ = await post(url, **own)
    assert (status, '"quote_altered"' in told) == (422, True), told
    assert exchange.published == []


@pytest.mark.parametrize("request_id", ["", "x" * 5000, "req_37a8eec1ce19687d"])
async def test_an_offer_to_no_request_of_the_tenant_is_refused(request_id: str) -> None:
    exchange, (_, take) = Silent(), offer()
    async with before(exchange) as url:
        token = take["quote_id"].rpartition(":")[2]
        status, told, _ = await post(url, shunter={"quote_id": f"{request_id}:{token}"})
    assert (status, '"quote_altered"' in told) == (422, True), told
    assert exchange.published == []
