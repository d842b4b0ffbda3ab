"""Texts and their digests: proof that a text is the one digested."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from shunter.audit.disclosures import is_disclosure, shown_parts
from shunter.console import UserError, named, read_input
from shunter.logs.reading import TrailRow, read_all
from streams.kafka.log import KafkaLog
from topics import BadRecordError, Catalogue, Evidence, Salt, Settings, TextDigest, decode
from topics.signing.request_parts import parts_of, whole_digest
from topics.signing.salts import digest_key, text_digest


class Match(NamedTuple):
    """The identity of a text, by a step's digest.

    Attributes:
        told: a sentence on it.
        is_altered: whether it is a body that was sent, beside something that was not.
    """

    told: str
    is_altered: bool = False


def read_text(path: Path) -> Any:
    """Return the JSON in a file.

    Raises:
        UserError: there is none.
    """
    try:
        return orjson.loads(read_input(path))
    except OSError as error:
        raise UserError(f"{named(path)}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise UserError(f"{named(path)} is no JSON: {error}") from error


async def match_text(settings: Settings, rows: Sequence[TrailRow], given: Any) -> list[Match]:
    """Return what a text is by each step with its digest.

    The text is parsed JSON: a request as it was sent, parts of one (``shunter.audit.disclosures``),
    a body, or a request or result with a body in it.

    Raises:
        UserError: nothing is known of the request, or its tenant was forgotten.
    """
    digests = list(_digests(rows))
    if not digests:
        raise UserError("the evidence has no digest: nothing is known of the request, or of a body")
    salts = {salt.id: salt for salt in await read_salts(settings)}
    if not any(digest.salt in salts for _, _, digest in digests):
        raise UserError("the tenant's salts are gone: it was forgotten")
    secret = settings.evidence_secret
    raw_secret = None if secret is None else secret.get_secret_value().encode()
    matches = []
    for step, what, digest in digests:
        if digest.salt in salts:
            key = digest_key(salts[digest.salt], raw_secret)
            matches += [
                found._replace(told=f"{found.told}, by the evidence {step!r}")
                for found in _found(key, digest, what, given)
            ]
    return matches


def _found(key: bytes, digest: TextDigest, what: str, given: Any) -> Iterator[Match]:
    """Yield what a text is, by one digest."""
    if digest.whole is not None and is_disclosure(given):
        for pointer, value in shown_parts(key, digest.whole, given):
            told = orjson.dumps(value).decode()
            yield Match(f"{pointer} of the request was {told}")
        return
    if digest.whole is not None and isinstance(given, dict):
        with contextlib.suppress(ValueError):
            leaves = [part.leaf for part in parts_of(given)]
            if whole_digest(key, leaves) == digest.whole:
                yield Match("it is the whole request")
                return
    bodies = [body for body in _bodies(given) if text_digest(key, body) == digest.hmac]
    if bodies:
        is_beside = digest.whole is not None and bodies[0] is not given
        rest = ", but what the file has beside it is not what was sent" if is_beside else ""
        yield Match(f"it is the body of the {what}{rest}", is_beside)


async def read_salts(settings: Settings) -> list[Salt]:
    """Return the salts that were not destroyed."""
    salts: dict[bytes, Salt] = {}
    async for record in read_all(KafkaLog(settings), Catalogue(settings).evidence_salts, 1):
        salts.pop(record.key or b"", None)
        if record.value is not None:
            try:
                salts[record.key or b""] = decode(Salt, record.value)
            except BadRecordError:
                continue
    return list(salts.values())


def _digests(rows: Sequence[TrailRow]) -> Iterator[tuple[str, str, TextDigest]]:
    for row in rows:
        try:
            step = decode(Evidence, row.value or b"")
        except BadRecordError:
            continue
        if step.request_digest is not None:
            yield step.step, "request", step.request_digest
        if step.response_digest is not None:
            yield step.step, "answer", step.response_digest


def _bodies(given: Any) -> Iterator[Any]:
    """Yield the candidates in a file: all of it, a request's body, or a result's."""
    yield given
    if isinstance(given, dict):
        if "body" in given:
            yield given["body"]
        response = given.get("response")
        if isinstance(response, dict) and "body" in response:
            yield response["body"]
