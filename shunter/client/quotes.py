"""Quotes of files: the questions that are asked, and the menu that their answers come to."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

from aiokafka.errors import KafkaError

from shunter.client.kafka import tail
from shunter.client.submit import ACKNOWLEDGED_S_MAX, POLL_S, producer_of
from shunter.console import UserError
from topics import (
    BadRecordError,
    Catalogue,
    InferenceRequest,
    QuoteAnswer,
    QuoteOffer,
    Settings,
    decode,
    encode,
)
from topics.iso_time import time_told
from topics.records import headers as h
from topics.records.money import NANO
from topics.records.quote import MEMBERS_MAX, parse_question

# What a question has beside its requests, at most.
WISH_BYTES = 1024
# How long an answer may take: a router answers within a second, and may have to start first.
ANSWER_S_MAX = 60.0


@dataclass(slots=True)
class MenuLine:
    """One line of the menu of a file: the sums of those of its questions."""

    tier: str
    deadline: float
    within_s: float | None
    chance: float = 1.0
    nano_usd: int = 0
    valid_until: float = float("inf")
    quote_ids: dict[str, str] = field(default_factory=dict)

    @property
    def cost_usd(self) -> float:
        """The price of all requests together, US dollars."""
        return self.nano_usd / NANO

    def add(self, offer: QuoteOffer) -> None:
        """Take in the offer to some more of the requests."""
        self.chance = min(self.chance, offer.chance)
        self.nano_usd += offer.nano_usd
        self.valid_until = min(self.valid_until, offer.valid_until)
        self.quote_ids |= offer.quote_ids


@dataclass(frozen=True, slots=True)
class Wish:
    """Wishes for all requests: windows such as ``6h``, deadlines in epoch seconds, tiers."""

    windows: Sequence[str] = ()
    deadlines: Sequence[float] = ()
    tiers: Sequence[str] = ()


def questions(
    requests: Sequence[InferenceRequest], wish: Wish, prefix: str, bytes_max: int
) -> Iterator[tuple[str, bytes]]:
    """Yield the id and the value of each question: of one tenant each, and no more than it takes.

    Raises:
        UserError: no router would take one, or there is more than one, and no deadline that is the
            same for all.
    """
    parts = list(_parts(requests, bytes_max - WISH_BYTES))
    if len(parts) > 1 and not wish.windows and not wish.deadlines:
        raise UserError(
            f"{len(requests)} requests take {len(parts)} questions, of one tenant, {MEMBERS_MAX}"
            f" requests and {bytes_max:,} bytes at most, whose menus need the same deadlines: give"
            " --by"
        )
    for number, part in enumerate(parts):
        name = f"{prefix}-{number}"
        asked: dict[str, Any] = {
            "id": name,
            "requests": [as_sent(request) for request in part],
            "windows": list(wish.windows),
            "deadlines": list(wish.deadlines),
            "tiers": list(wish.tiers),
        }
        value = encode(asked)
        try:
            parse_question(value, bytes_max=bytes_max)
        except BadRecordError as error:
            raise UserError(f"this can't be asked: {error.message}") from error
        yield name, value


def _parts(
    requests: Sequence[InferenceRequest], bytes_max: int
) -> Iterator[list[InferenceRequest]]:
    """Yield the requests in the parts that questions take: of one tenant, few and short enough."""
    by_tenant: dict[str, list[InferenceRequest]] = defaultdict(list)
    for request in requests:
        by_tenant[request.tenant].append(request)
    for found in by_tenant.values():
        part, size = list[InferenceRequest](), 0
        for request in found:
            own = len(encode(as_sent(request))) + 1
            if part and (len(part) == MEMBERS_MAX or size + own > bytes_max):
                yield part
                part, size = [], 0
            part.append(request)
            size += own
        yield part


def as_sent(request: InferenceRequest, quote_id: str | None = None) -> dict[str, Any]:
    """Return a request as it is asked about, or sent once it has taken an offer."""
    left_out = {"deadline", "completion_window", "service_tier", "quote", "quote_id", "created_at"}
    fields = request.model_dump(exclude=left_out, exclude_defaults=True)
    return fields if quote_id is None else fields | {"quote_id": quote_id}


async def ask(
    settings: Settings, asked: Mapping[str, bytes], timeout_s: float = ANSWER_S_MAX
) -> list[QuoteAnswer]:
    """Publish questions and return their answers, in their order.

    Raises:
        UserError: Kafka takes none, a router sets one aside, or none answers in time.
    """
    catalogue, found = Catalogue(settings), dict[str, QuoteAnswer]()
    also = [catalogue.dead_letters]
    async with tail(settings, [catalogue.quote_answers], also=also) as reader:
        async with producer_of(settings) as producer:
            try:
                async with asyncio.timeout(ACKNOWLEDGED_S_MAX):
                    for name, value in asked.items():
                        await producer.send_and_wait(catalogue.quotes, value, key=name.encode())
            except (KafkaError, TimeoutError) as error:
                raise UserError(f"a question could not be published: {error}") from error
        end = asyncio.get_running_loop().time() + timeout_s
        while found.keys() < asked.keys():
            left_s = end - asyncio.get_running_loop().time()
            if left_s <= 0:
                raise UserError(
                    f"no answer within {timeout_s:g} s; does a `shunter router` run? A question"
                    f" that can't be read becomes a dead letter on {catalogue.dead_letters}"
                )
            for record in await reader.poll(min(POLL_S, left_s)):
                name = (record.key or b"").decode("utf-8", "replace")
                if name not in asked:
                    continue
                if record.partition.topic == catalogue.dead_letters:
                    why = h.find(record.headers, h.REASON) or b"no reason given"
                    raise UserError(
                        f"a router could not read the question ({why.decode('utf-8', 'replace')});"
                        f" it stands on {catalogue.dead_letters} as {name}"
                    )
                found[name] = decode(QuoteAnswer, record.value or b"")
    return [found[name] for name in asked]


async def bound_lines(
    settings: Settings, requests: Sequence[InferenceRequest], by: str, tier: str | None, most: float
) -> tuple[MenuLine, list[bytes]]:
    """Return the cheapest offer to all requests together, and the lines that take it.

    Args:
        settings: of Kafka.
        requests: as they were checked.
        by: a window such as ``6h``, or a time in ISO 8601 or epoch seconds; that of a request,
            where it has its own.
        tier: a service tier; None is that of the class.
        most: US dollars that it may cost.

    Raises:
        UserError: a request wants its answer by another time, there is no offer, or it costs more.
    """
    at = time_told(by)
    for each in requests:
        own = each.completion_window or each.deadline
        if own is not None and own != (by if at is None else at):
            raise UserError(f"{each.id} has a deadline of its own, {own}: a quote has one for all")
    tiers = [] if tier is None else [tier]
    wish = Wish([by], [], tiers) if at is None else Wish([], [at], tiers)
    asked = dict(questions(requests, wish, f"quote-{token_hex(6)}", settings.request_bytes_max))
    offer = min(menu_of(await ask(settings, asked)), key=lambda line: (line.nano_usd, -line.chance))
    if offer.cost_usd > most:
        raise UserError(
            f"the cheapest offer is {offer.cost_usd:.6f} US dollars, --quote {most:g}; nothing was"
            " published"
        )
    return offer, [encode(as_sent(r, offer.quote_ids[r.id])) + b"\n" for r in requests]


def menu_of(answers: Sequence[QuoteAnswer]) -> list[MenuLine]:
    """Return the menu of all answers together, by tier and deadline, the surest first.

    Raises:
        UserError: one of them refuses, or has nothing that the others have.
    """
    for answer in answers:
        if answer.error is not None:
            raise UserError(f"no quote ({answer.error.code}): {answer.error.message}")
    found = [_by_time(answer) for answer in answers]
    if len(found) == 1:
        common = list(found[0])
    else:
        common = [time for time in found[0] if all(time in each for each in found)]
    lines = []
    for time in common:
        for rank in range(max(len(each[time]) for each in found)):
            first = found[0][time][0]
            line = MenuLine(first.tier, first.deadline, first.within_s)
            for each in found:
                line.add(each[time][min(rank, len(each[time]) - 1)])
            lines.append(line)
    if not lines:
        raise UserError("no quote: no deadline can be promised to all of the requests")
    return lines


def _by_time(answer: QuoteAnswer) -> dict[tuple[str, float], list[QuoteOffer]]:
    """Return the offers by tier and by when, the surest first."""
    found: dict[tuple[str, float], list[QuoteOffer]] = defaultdict(list)
    for offer in answer.offers:
        found[offer.tier, offer.within_s or offer.deadline].append(offer)
    return {time: sorted(each, key=lambda o: -o.chance) for time, each in found.items()}
