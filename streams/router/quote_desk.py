"""The quote desk: answers what requests would cost, and binds those that took an offer."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TypeGuard

from policies import Decision, Situation, UnservableError, tag
from policies.placement.quoting import PricedOffer, Shortfall, bound_to, menu
from streams.config.token_counting import TokenCounter
from streams.engine.log import Outgoing, Record
from streams.engine.stage import Effect
from streams.evidence.records import EvidenceWriter
from topics import (
    InferenceRequest,
    Profile,
    QuoteAnswer,
    Quoted,
    QuoteOffer,
    QuoteQuestion,
    ResultError,
    duration_s,
    encode,
)
from topics.records.money import NANO
from topics.records.quote_token import (
    QuoteTerms,
    QuoteTokenError,
    id_of,
    request_digest,
    terms_of,
    token_of,
    wants_other,
)


class QuoteDesk:
    """Quotes by a secret that all routers share; without one it quotes nothing, and binds nothing.

    It remembers no quote: what accepts one has its terms, signed.
    """

    def __init__(self, secret: str | None) -> None:
        self._secret = None if secret is None else secret.encode()

    def answer(
        self,
        record: Record,
        question: QuoteQuestion,
        here: Situation,
        writer: EvidenceWriter,
        tokens: TokenCounter,
        now: float,
        key: str | None = None,
    ) -> Effect:
        """Return the answer to a question and its evidence.

        Args:
            record: the question's.
            question: as it was parsed.
            here: the situation that it is quoted in.
            writer: of the evidence.
            tokens: counts those of the requests.
            now: epoch seconds.
            key: id of the API key that it came with, as a gateway proved it.
        """
        try:
            offers = self._offers(question, here, tokens, now, key)
        except UnservableError as error:
            return self.refusal(record, question, error, writer, now)
        return self._told(record, question, offers, None, writer, now)

    def refusal(
        self,
        record: Record,
        question: QuoteQuestion,
        error: UnservableError,
        writer: EvidenceWriter,
        now: float,
    ) -> Effect:
        """Return the answer to a question that is not quoted, with its evidence."""
        return self._told(record, question, (), error, writer, now)

    def accepted(
        self, request: InferenceRequest, came_at: float
    ) -> tuple[InferenceRequest, Quoted | None]:
        """Return a request on the terms that it took, and what they bind it to, if any.

        Args:
            request: as it was parsed.
            came_at: when it came by the broker's clock, epoch seconds.

        Raises:
            UnservableError: the quote was altered, is of another request, or has expired.
        """
        if request.quote_id is None:
            return request, None
        if self._secret is None:
            raise UnservableError("quotes_off", _OFF)
        try:
            terms, digest = terms_of(self._secret, request.quote_id), request_digest(request)
        except QuoteTokenError as error:
            raise UnservableError("quote_altered", str(error)) from error
        except ValueError as error:
            raise UnservableError("quote_altered", "the request has no canonical form") from error
        if terms.digest != digest:
            raise UnservableError(
                "quote_altered",
                "the request is not the one that was quoted: id, tenant, model, task, body, slo,"
                " constraints and hints must be the same",
            )
        if came_at > terms.valid_until:
            late_s = came_at - terms.valid_until
            raise UnservableError(
                "quote_expired",
                f"the quote expired {late_s:.1f} s before; ask for another, for the request under"
                " another id, since this one is used",
            )
        self._check_wish(request, terms)
        bound = {
            "service_tier": terms.tier, "deadline": terms.due_at(came_at),
            "completion_window": None, "created_at": came_at,
        }  # fmt: skip
        quoted = Quoted(id_of(request.quote_id), terms.nano_usd, terms.chance)
        return request.model_copy(update=bound), quoted

    @staticmethod
    def _check_wish(request: InferenceRequest, terms: QuoteTerms) -> None:
        """Refuse a request that says itself, and otherwise, when it wants its answer."""
        if wants_other(request, terms):
            raise UnservableError(
                "quote_altered",
                "deadline, completion_window or service_tier is not that of the quote; leave them"
                " out, since the quote has them",
            )

    def _offers(
        self,
        question: QuoteQuestion,
        here: Situation,
        tokens: TokenCounter,
        now: float,
        key: str | None,
    ) -> tuple[QuoteOffer, ...]:
        secret = self._secret
        if secret is None:
            raise UnservableError("quotes_off", _OFF)
        if any(deadline <= now for deadline in question.deadlines):
            raise UnservableError("deadline_passed", "a deadline of the question has passed")
        try:
            digests = [request_digest(request) for request in question.requests]
        except ValueError as error:
            raise UnservableError("no_quote", "a request has no canonical form") from error

        def in_tier(tier: str) -> Sequence[Profile]:
            return [_profile(each, tier, here, tokens, now, key) for each in question.requests]

        offers, refusal = menu(
            in_tier,
            question.tiers or ["auto"],
            question.deadlines,
            [duration_s(window) for window in question.windows],
            here,
            now,
        )
        if not offers:
            raise UnservableError("no_quote", _why(refusal))
        return tuple(_signed(offer, question, digests, secret) for offer in offers)

    @staticmethod
    def _told(
        record: Record,
        question: QuoteQuestion,
        offers: tuple[QuoteOffer, ...],
        refused: UnservableError | None,
        writer: EvidenceWriter,
        now: float,
    ) -> Effect:
        error = (
            None
            if refused is None
            else ResultError(refused.code, refused.message, retry_at=refused.retry_at)
        )
        answer = QuoteAnswer(question.id, now, offers, error, record.trace_id, question.metadata)
        told = _answered(answer, writer)
        # Who reads evidence may not accept an offer by it.
        seen = tuple(replace(offer, quote_ids={}) for offer in offers)
        return Effect(record, [told, writer.quoted(record, question, seen, error, now)])


def _answered(answer: QuoteAnswer, writer: EvidenceWriter) -> Outgoing:
    """Return an answer as a record; without the client's metadata where it is too large with it."""
    spare = None
    if answer.metadata is not None:
        spare = partial(_answered, replace(answer, metadata=None), writer)
    topic, key = writer.catalogue.quote_answers, answer.id.encode()
    return Outgoing(topic, key, encode(answer), payload=answer, spare=spare)


_OFF = "nothing is quoted here: the routers have no SHUNTER_QUOTE_SECRET"


def _profile(
    request: InferenceRequest,
    tier: str,
    here: Situation,
    tokens: TokenCounter,
    now: float,
    key: str | None,
) -> Profile:
    when = {"created_at": now, "deadline": None, "completion_window": None}
    asked = request.model_copy(update=when | {"service_tier": _own_tier(tier, request)})

    return tag(
        asked,
        here.policy,
        received_at=now,
        now=now,
        ingest_partition=0,
        count=tokens.of(asked),
        lengths=here.view.lengths,
        serving=here.options.serving.get(asked.model),
        key=key,
        is_quoted=True,
    ).profile


def _own_tier(tier: str, request: InferenceRequest) -> str:
    """Return the tier that a request has in an offer: of ``auto`` its own."""
    return request.service_tier if tier == "auto" else tier


def _signed(
    offer: PricedOffer, question: QuoteQuestion, digests: Sequence[str], secret: bytes
) -> QuoteOffer:
    """Return an offer as the client gets it, with what accepts it for each request."""
    tokens: dict[str, str] = {}
    quotes: dict[str, Quoted] = {}
    for request, digest, nano_usd in zip(question.requests, digests, offer.nano_usd, strict=True):
        deadline = offer.deadline if offer.within_s is None else None
        terms = QuoteTerms(
            digest,
            _own_tier(offer.tier, request),
            deadline,
            offer.within_s,
            offer.chance,
            nano_usd,
            offer.valid_until,
        )
        token = tokens[request.id] = token_of(secret, terms)
        quotes[request.id] = Quoted(id_of(token), nano_usd, offer.chance)
    total = sum(offer.nano_usd)
    return QuoteOffer(
        deadline=offer.deadline,
        tier=offer.tier,
        cost_usd=total / NANO,
        nano_usd=total,
        chance=offer.chance,
        valid_until=offer.valid_until,
        within_s=offer.within_s,
        quote_ids=tokens,
        quotes=quotes,
    )


def _why(refusal: Decision | Shortfall | None) -> str:
    """Return why nothing is offered, and what can be asked for instead."""
    if isinstance(refusal, Decision):
        return refusal.message or f"no pool can serve it now: {refusal.reason}"
    if refusal is None:
        return "nothing can be promised"
    wishes = []
    if refusal.ttft_s is not None:
        wishes.append(("slo.ttft_ms", f"a first token within {refusal.ttft_s * 1000:g} ms"))
    if refusal.tpot_s is not None:
        wishes.append(("slo.tpot_ms", f"{refusal.tpot_s * 1000:g} ms per output token"))
    needed = f"that takes a chance of {refusal.needed:g}, and the best is {refusal.chance:.3g}"
    if not wishes:
        return f"nothing can be promised by any of these deadlines: {needed}"
    names, told = zip(*wishes, strict=True)
    return (
        f"the SLO can't be promised, {' and '.join(told)}: {needed}; the deadline is not the"
        f" reason. Ask with a longer {' and '.join(names)}"
    )


def is_to_run(read: InferenceRequest | Exception) -> TypeGuard[InferenceRequest]:
    """Return whether what was read is a request, and not the question what one would cost."""
    return isinstance(read, InferenceRequest) and not read.quote


def bound_profile(profile: Profile, quoted: Quoted | None) -> Profile:
    """Return a request's profile as its quote binds it."""
    return profile if quoted is None else bound_to(profile, quoted)
