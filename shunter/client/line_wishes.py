"""Wishes for all lines, given as options of `shunter submit` and written into each."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import orjson

from shunter.console import UserError
from topics import BadRecordError, parse_request
from topics.records.batch_line import body_tier, wishes_of, wishes_of_line
from topics.wire.codec import decode_unique_json_object

_DEADLINES = frozenset({"deadline", "completion_window"})
_TRIAL = {"custom_id": "trial", "url": "/v1/chat/completions", "body": {"model": "any"}}


def wishes_from(
    tenant: str | None,
    deadline: str | None,
    tier: str | None,
    regions: Iterable[str],
    constraints: Iterable[str],
) -> dict[str, Any]:
    """Return the options as fields of a request; empty if none is given.

    Raises:
        UserError: an option's value is none that a request may have.
    """
    told: dict[str, Any] = {"tenant": tenant, "deadline": deadline, "tier": tier}
    told = {name: value for name, value in told.items() if value is not None}
    if regions := list(regions):
        told["regions"] = regions
    try:
        for pair in constraints:
            name, equals, value = pair.partition("=")
            if not equals or name in told:
                raise UserError(f"--constraint {pair}: not NAME=VALUE, or given twice")
            told[name] = value
        wishes = wishes_of(told, "--constraint")
        parse_request(orjson.dumps(_TRIAL | {"shunter": wishes}), bytes_max=1024 * 1024)
    except BadRecordError as error:
        raise UserError(f"the options for all lines: {error.message}") from error
    return wishes


def with_wishes(lines: Iterable[bytes], wishes: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the lines with these wishes where they say nothing of their own.

    All else keeps its bytes. A line that is no request is left as it is.
    """
    for line in lines:
        yield _with_wishes(line, wishes) if wishes and line.strip() else line


def _with_wishes(line: bytes, wishes: Mapping[str, Any]) -> bytes:
    try:
        parsed = decode_unique_json_object(line)
        is_batch = "custom_id" in parsed
        own = wishes_of_line(parsed) if is_batch else parsed
    except BadRecordError:
        return line
    missing = _missing(own, body_tier(parsed.get("body")), wishes)
    fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    if is_batch:
        missing = {"shunter": _added(parsed.get("shunter"), missing)}
    elif "constraints" in missing:
        missing["constraints"] = _added(parsed.get("constraints"), missing["constraints"])
    for name, value in missing.items():
        fields[name] = msgspec.Raw(orjson.dumps(value))
    return msgspec.json.encode(fields) + b"\n"


def _missing(own: Mapping[str, Any], tier: str | None, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the wishes of which a line says nothing itself."""
    missing = {name: value for name, value in wishes.items() if name not in own}
    if _DEADLINES & own.keys():
        missing = {name: value for name, value in missing.items() if name not in _DEADLINES}
    if tier is not None:
        missing.pop("service_tier", None)
    said, wanted = own.get("constraints"), wishes.get("constraints")
    if isinstance(said, dict) and wanted is not None:
        missing["constraints"] = {n: v for n, v in wanted.items() if n not in said}
    return missing


def _added(known: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with what is added; of `constraints` both parts."""
    if not isinstance(known, dict):
        return dict(more)
    both = known | dict(more)
    if isinstance(known.get("constraints"), dict) and "constraints" in more:
        both["constraints"] = known["constraints"] | more["constraints"]
    return both
