"""Answers made of results: bodies in the form that was asked for, and what is told beside them."""

import base64
import struct
from collections.abc import Mapping
from typing import Any

from gateway.api.translation import Wanted
from topics import Placement, Result, encode

_TIERS = {None: "default", "auto": "default", "fast": "priority"}
_OBJECTS = {"chat": "chat.completion", "completions": "text_completion"}
_ID_PREFIXES = {"chat": "chatcmpl-", "completions": "cmpl-", "moderations": "modr-"}


def tier_told(tier: str | None) -> str:
    """Return the tier that a chat answer names, for the one asked for."""
    return _TIERS.get(tier, tier or "default")


def body_of(result: Result) -> Any:
    """Return the body of a result's response; None where it has none."""
    return None if result.response is None else result.response.body


def answer_body(result: Result, wanted: Wanted) -> Any:
    """Return the body of a completed result, in the form that was asked for."""
    body = body_of(result)
    if not isinstance(body, dict):
        return body
    body = body | {"model": wanted.model}
    if wanted.operation in _ID_PREFIXES:
        body.setdefault("id", _ID_PREFIXES[wanted.operation] + result.id)
    if wanted.operation in _OBJECTS:
        body.setdefault("object", _OBJECTS[wanted.operation])
        body.setdefault("created", int(result.timing.created_at))
        body["choices"] = [_whole(choice) for choice in body.get("choices") or ()]
    if wanted.operation == "chat":
        body["service_tier"] = tier_told(wanted.tier)
    if wanted.operation == "embeddings":
        body["data"] = [_encoded(row, wanted) for row in body.get("data") or ()]
    return body


def _whole(choice: Any) -> Any:
    """Return a choice with the fields that OpenAI's API always has, and many servers leave out."""
    if not isinstance(choice, dict):
        return choice
    choice = {"logprobs": None} | choice
    if isinstance(message := choice.get("message"), dict):
        choice["message"] = {"refusal": None, "annotations": []} | message
    return choice


def _encoded(row: Any, wanted: Wanted) -> Any:
    """Return an embedding in the encoding asked for, whichever the server gives."""
    vector = row.get("embedding") if isinstance(row, dict) else None
    if wanted.encoding == "base64" and isinstance(vector, list):
        try:
            packed = struct.pack(f"<{len(vector)}f", *vector)
        except (struct.error, OverflowError):
            return row
        return row | {"embedding": base64.b64encode(packed).decode()}
    if wanted.encoding == "float" and isinstance(vector, str):
        try:
            packed = base64.b64decode(vector, validate=True)
            return row | {"embedding": list(struct.unpack(f"<{len(packed) // 4}f", packed))}
        except (struct.error, ValueError):
            return row
    return row


def placement_headers(placement: Placement | None) -> dict[str, str]:
    """Return the headers that tell where a request ran."""
    if placement is None:
        return {}
    told = {
        "pool": placement.pool,
        "device": placement.device,
        "region": placement.region,
        "precision": placement.precision,
        "variant": placement.model_variant,
        "path": placement.path,
    }
    return {f"x-shunter-{name}": header_text(value) for name, value in told.items()}


def answer_headers(result: Result) -> dict[str, str]:
    """Return the headers of an answer in one piece: where it ran and what it cost."""
    headers = placement_headers(result.placement)
    if result.cost is not None:
        headers["x-shunter-cost-usd"] = _usd(result.cost.usd)
        if result.cost.quoted_usd is not None:
            headers["x-shunter-quoted-usd"] = _usd(result.cost.quoted_usd)
    return headers


def _usd(amount: float) -> str:
    return f"{amount:.12f}".rstrip("0").rstrip(".")


def header_text(text: str) -> str:
    """Return text that a header can hold; declarations name pools, and may do so in any script."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def disclosed(result: Result) -> dict[str, Any]:
    """Return what is told of a result beside its texts."""
    error = result.error
    told: Mapping[str, Any] = {
        "id": result.id,
        "status": result.status,
        "placement": result.placement,
        "timing": result.timing,
        "usage": result.usage,
        "cost": result.cost,
        "error": error,
        "trace_id": result.trace_id,
    }
    return {name: value for name, value in told.items() if value is not None}


def comment_of(result: Result) -> bytes:
    """Return the comment of a stream that tells of its result; SDKs pass it over."""
    return b": shunter " + encode(disclosed(result)) + b"\n\n"
