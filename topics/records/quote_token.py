"""Quote tokens: the terms of an offer and who made it, in a text that the client hands back.

Routers that share a secret need to keep nothing of what they quoted: the token has its terms, and
an HMAC over them that nobody else can make.
"""

import base64
import binascii
import hmac
from hashlib import sha256
from typing import NamedTuple

import orjson

from topics.records.request import InferenceRequest, duration_s
from topics.wire.canonical_json import canonical_json

# Apart from all else that the secret signs.
_PURPOSE = b"shunter quote 1\n"
ID_CHARACTERS = 16
# What is quoted, and all that the price of it depends on. Not the texts that come back as they
# are, nor when it is wanted, which the terms say.
_QUOTED = ("id", "body", "url", "model", "task", "tenant", "slo", "constraints", "hints")


class QuoteTerms(NamedTuple):
    """The terms of an offer to one request, whose digest is the first.

    ``deadline`` is epoch seconds, or None where ``within_s`` counts from the acceptance;
    ``valid_until`` is epoch seconds.
    """

    digest: str
    tier: str
    deadline: float | None
    within_s: float | None
    chance: float
    nano_usd: int
    valid_until: float

    def due_at(self, accepted_at: float) -> float:
        """Return by when the request is promised, epoch seconds, if it was accepted then."""
        return accepted_at + (self.within_s or 0.0) if self.deadline is None else self.deadline


class QuoteTokenError(ValueError):
    """A token is none that this installation made."""


def request_digest(request: InferenceRequest) -> str:
    """Return what tells a request from any other that would be priced on its own.

    Raises:
        ValueError: it has no canonical form.
    """
    told = request.model_dump(include=set(_QUOTED), exclude_defaults=True)
    return sha256(canonical_json(told)).hexdigest()[:32]


def token_of(secret: bytes, terms: QuoteTerms) -> str:
    """Return the token of an offer."""
    told = orjson.dumps(list(terms))
    return f"{_text(told)}.{_text(_mac(secret, told))}"


def id_of(token: str) -> str:
    """Return the name of a quote, as evidence has it: it accepts nothing."""
    return sha256(token.encode()).hexdigest()[:ID_CHARACTERS]


def said_in(token: str) -> QuoteTerms | None:
    """Return the terms that a token says it has; None if it says none.

    Nobody has vouched for them: `terms_of` does.
    """
    try:
        told = orjson.loads(_bytes(token.partition(".")[0]))
    except (binascii.Error, ValueError):
        return None
    match told:
        case [str(), str(), when, within_s, int() | float(), int(), int() | float()]:
            times = [each for each in (when, within_s) if each is not None]
            if len(times) == 1 and isinstance(times[0], int | float):
                return QuoteTerms(*told)
    return None


def wants_other(request: InferenceRequest, terms: QuoteTerms) -> bool:
    """Return whether a request says itself, and otherwise than its quote, when it is wanted."""
    window = request.completion_window
    return (
        (request.deadline is not None and request.deadline != terms.deadline)
        or (window is not None and duration_s(window) != terms.within_s)
        or request.service_tier not in ("auto", terms.tier)
    )


def terms_of(secret: bytes, token: str) -> QuoteTerms:
    """Return the terms in a token.

    Args:
        secret: that of the installation.
        token: as the client sent it.

    Raises:
        QuoteTokenError: it was not made with this secret, or something in it was altered.
    """
    first, _, second = token.partition(".")
    try:
        told, mac = _bytes(first), _bytes(second)
    except (binascii.Error, ValueError) as error:
        raise QuoteTokenError("the quote_id is no text of a menu") from error
    # Of several texts that decode to the same bytes only the one that was made.
    is_ours = hmac.compare_digest(_mac(secret, told), mac)
    if not is_ours or (_text(told), _text(mac)) != (first, second):
        raise QuoteTokenError("the quote_id was altered, or is of another installation")
    return QuoteTerms(*orjson.loads(told))


def _mac(secret: bytes, told: bytes) -> bytes:
    return hmac.digest(secret, _PURPOSE + told, "sha256")


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
