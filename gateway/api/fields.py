"""A client's wishes to Shunter itself: the body's ``shunter``, and headers that say the same."""

from collections.abc import Callable, Mapping
from typing import Any

from gateway.http.errors import ApiError
from topics.iso_time import time_told

PREFIX = "x-shunter-"
BODY_FIELD = "shunter"
_FIELDS = ("constraints", "deadline", "slo", "task", "session", "hints", "quote", "quote_id")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError("is a list separated by commas, of which no part is empty")
    return names


def _pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in _names(text):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (equals and name and value):
            raise ValueError("is a list of name=value, separated by commas")
        if name in found:
            raise ValueError(f"names {name!r:.40} twice")
        found[name] = value
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError("is a number") from error


def _deadline(text: str) -> str | float:
    at = time_told(text)
    return text if at is None else at


def _slo(text: str) -> dict[str, float]:
    return {name: _number(value) for name, value in _pairs(text).items()}


def _text(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


# By the rest of its name: where its value belongs, and how it is read.
_HEADERS: dict[str, tuple[tuple[str, ...], Callable[[str], Any]]] = {
    "regions": (("constraints", "regions"), _names),
    "precisions": (("constraints", "precisions"), _names),
    "pools": (("constraints", "pools"), _names),
    "exclude-pools": (("constraints", "exclude_pools"), _names),
    "data-class": (("constraints", "data_class"), _text),
    "labels": (("constraints", "labels"), _pairs),
    "max-cost-usd": (("constraints", "max_cost_usd"), _number),
    "max-gco2": (("constraints", "max_gco2"), _number),
    "deadline": (("deadline",), _deadline),
    "slo": (("slo",), _slo),
    "task": (("task",), _text),
    "session": (("session",), _text),
}


def wishes(in_body: Any, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return what a client wants, as the fields of ``shunter`` in a body.

    Args:
        in_body: the body's field ``shunter``; None if it has none.
        headers: of the HTTP request; those that are not Shunter's are ignored.

    Raises:
        ApiError: a field or header is unknown or unfit, or the two differ.
    """
    if in_body is not None and not isinstance(in_body, dict):
        raise ApiError(400, "invalid_type", "shunter must be an object", param=BODY_FIELD)
    found: dict[str, Any] = {}
    for name, value in (in_body or {}).items():
        if name not in _FIELDS:
            raise _unknown(f"{BODY_FIELD}.{name}"[:100], ", ".join(_FIELDS))
        if value is not None:
            found[name] = value
    constraints = found.get("constraints")
    if isinstance(constraints, dict):
        # Copied, so that what headers add is not in the client's body.
        found["constraints"] = {k: v for k, v in constraints.items() if v is not None}
    given: dict[str, list[str]] = {}
    # A header may come more than once.
    for header, text in headers.items():
        if header.lower().startswith(PREFIX):
            given.setdefault(header.lower(), []).append(text)
    for name, texts in given.items():
        _add(found, name, ",".join(texts))
    return found


def _add(found: dict[str, Any], header: str, text: str) -> None:
    known = _HEADERS.get(header.removeprefix(PREFIX))
    if known is None:
        raise _unknown(header[:100], ", ".join(f"X-Shunter-{name.title()}" for name in _HEADERS))
    (*above, field), read = known
    try:
        value = read(text.strip())
    except ValueError as error:
        raise ApiError(
            400, "invalid_value", f"the header {header} {error}", param=header
        ) from error
    into = found
    for name in above:
        into = into.setdefault(name, {})
        if not isinstance(into, dict):
            return  # which its own check refuses
    if field in into and into[field] != value:
        where = ".".join([BODY_FIELD, *above, field])
        message = f"the header {header} and {where} of the body differ; give one of them"
        raise ApiError(400, "conflicting_parameters", message, param=where)
    into[field] = value


def _unknown(name: str, known: str) -> ApiError:
    return ApiError(400, "unknown_parameter", f"{name} is unknown; known are {known}", param=name)
