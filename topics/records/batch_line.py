"""A line of an OpenAI Batch file, as the fields of a native request.

Errors name fields of the contract alone: other names, and values, are the client's text.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from topics.iso_time import time_told
from topics.wire.errors import BadRecordError

ServiceTier = Literal["auto", "priority", "default", "flex", "batch"]

LINE_FIELDS = frozenset({"custom_id", "method", "url", "body", "shunter", "metadata"})
_REQUEST_FIELDS = frozenset(
    {
        "tenant", "task", "deadline", "completion_window", "service_tier", "slo", "constraints",
        "session", "hints",
    }
)  # fmt: skip
_LISTS = frozenset({"regions", "precisions", "pools", "exclude_pools"})
_LIMITS = frozenset({"max_cost_usd", "max_gco2"})
_CONSTRAINTS = _LISTS | _LIMITS | {"data_class", "labels"}
_SHORT = {"tier": "service_tier", "region": "regions"}
_FIGURES = frozenset({"slo", "hints"})
# Beside these a body's metadata has names of the client's own, which happen to be anything.
BODY_PREFIX = "shunter_"
# What OpenAI's own clients may write there.
_BODY_TIERS = {"fast": "priority"} | {tier: tier for tier in get_args(ServiceTier)}
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")


def fields_of_line(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a native request that a line says; their values are not checked.

    Raises:
        BadRecordError: the line has an unknown field, or says two things of one.
    """
    if unknown := set(fields) - LINE_FIELDS:
        raise _invalid(
            f"it has {len(unknown)} fields that an OpenAI Batch line has not (custom_id, method,"
            " url, body, shunter, metadata); use id instead of custom_id for a native request"
        )
    if fields.get("method", "POST") != "POST":
        raise _invalid("method: it is not 'POST'")
    if "url" not in fields:
        raise _invalid("url: Field required")
    body = fields.get("body")
    found = wishes_of_line(fields)
    # A Batch file is by its nature work that can wait: OpenAI's own window is a day.
    found.setdefault("service_tier", body_tier(body) or "batch")
    metadata = fields.get("metadata")
    if metadata is None and isinstance(body, dict):
        metadata = body.get("metadata")
    return found | {
        "id": fields["custom_id"],
        "url": fields["url"],
        "body": body,
        "metadata": metadata,
    }


def wishes_of_line(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a line wants beside its body, as fields of a native request.

    That stands in ``shunter``, in ``metadata``, and in ``body.metadata`` under names that begin
    with ``shunter_``.

    Raises:
        BadRecordError: an unknown field of ``shunter``, or two places that differ.
    """
    found = wishes_of(_object(fields, "shunter"), "shunter")
    own = _object(fields, "metadata")
    _merge(found, wishes_of({n: v for n, v in own.items() if _is_known(n)}, "metadata"))
    body = fields.get("body")
    theirs = body.get("metadata") if isinstance(body, dict) else None
    if isinstance(theirs, dict):
        named = {
            name.removeprefix(BODY_PREFIX): value
            for name, value in theirs.items()
            if name.startswith(BODY_PREFIX)
        }
        _merge(found, wishes_of(named, "body.metadata"))
    return found


def wishes_of(told: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return an object's wishes as fields of a native request.

    Texts are read as OpenAI's metadata has them: lists separated by commas, pairs as ``k=v,k=v``.

    Raises:
        BadRecordError: a name is not known.
    """
    found: dict[str, Any] = {}
    for said, value in told.items():
        name = _SHORT.get(said, said)
        if not _is_known(name):
            raise _invalid(f"{where}: has a name that is not a field of a request")
        if name in _CONSTRAINTS:
            _merge(found, {"constraints": {name: _constraint(name, value)}})
        elif name == "deadline" and isinstance(value, str):
            at = time_told(value)
            _merge(found, {"completion_window": value} if at is None else {"deadline": at})
        elif name == "constraints" and isinstance(value, dict):
            _merge(found, {name: {n: _constraint(n, v) for n, v in value.items()}})
        else:
            _merge(found, {name: _figures(value) if name in _FIGURES else value})
    return found


def body_tier(body: Any) -> str | None:
    """Return the tier that a body asks for; None if it asks for none that Shunter knows."""
    told = body.get("service_tier") if isinstance(body, dict) else None
    tier = _BODY_TIERS.get(told) if isinstance(told, str) else None
    return None if tier == "auto" else tier


def _is_known(name: str) -> bool:
    return name in _REQUEST_FIELDS or name in _CONSTRAINTS or name in _SHORT


def _constraint(name: str, value: Any) -> Any:
    if name in _LISTS and isinstance(value, str):
        return [each.strip() for each in value.split(",")]
    if name == "labels":
        return _pairs(value)
    if name in _LIMITS and isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return value


def _pairs(value: Any) -> Any:
    """Return ``a=1,b=c`` as an object; anything else, and what is no such text, as it is."""
    if not isinstance(value, str):
        return value
    pairs = [each.partition("=") for each in value.split(",")]
    if not all(equals for _, equals, _ in pairs):
        return value
    return {name.strip(): said.strip() for name, _, said in pairs}


def _figures(value: Any) -> Any:
    told = _pairs(value)
    if not isinstance(value, str) or not isinstance(told, dict):
        return told
    return {name: _plain(said) for name, said in told.items()}


def _plain(text: str) -> Any:
    if text in {"true", "false"}:
        return text == "true"
    if _NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    return text


def _object(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid(f"{name}: must be an object")
    return value


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for name, value in other.items():
        if name == "constraints" and isinstance(value, dict):
            known = into.setdefault(name, {})
            if isinstance(known, dict):
                _merge(known, value)
                continue
        if name in into and into[name] != value:
            raise _invalid(f"{name if _is_known(name) else 'a field'}: said twice, and differently")
        into[name] = value


def _invalid(message: str) -> BadRecordError:
    return BadRecordError("validate", "invalid_request", message)
