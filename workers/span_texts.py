"""Texts of a request and its answer for a span, where somebody has switched them on.

The attributes and their form are those of OpenTelemetry's GenAI conventions: messages of a role and
parts, as JSON. What is longer than the limit is cut within the texts, so that the JSON stays whole.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from streams.tracing import otlp_encoding as otlp
from streams.tracing import span_attributes as a

# What a message without a text takes, so that there are not endlessly many of them.
_BESIDE = 64
_NAME_MAX = 32
_TEXTS = ("content", "text", "input", "prompt")


def texts_of(body: Any, answer: Any, characters_max: int) -> a.Said:
    """Return the attributes that hold texts.

    Args:
        body: of the request.
        answer: the body of its response; None without one.
        characters_max: of each attribute's texts.
    """
    asked = _messages(body, "messages", "user", characters_max)
    said = otlp.attribute(otlp.OF_SPAN, "gen_ai.input.messages", asked)
    if answer is not None:
        told = _messages(answer, "choices", "assistant", characters_max)
        said += otlp.attribute(otlp.OF_SPAN, "gen_ai.output.messages", told)
    return said


def _messages(body: Any, member: str, role: str, left: int) -> str:
    """Return messages as JSON; a body without any is one, of its texts or of itself as JSON."""
    found: list[dict[str, Any]] = []
    for said_by, text, extra in _each(body, member, role):
        if left <= 0:
            break
        cut = text[:left]
        left -= len(cut) + _BESIDE
        part = {"type": "text", "content": cut}
        found.append({"role": said_by, "parts": [part]} | extra)
    return _as_json(found) or "[]"


def _each(body: Any, member: str, role: str) -> Iterable[tuple[str, str, dict[str, Any]]]:
    told = body.get(member) if isinstance(body, Mapping) else None
    if not isinstance(told, list):
        yield role, _text(body), {}
        return
    for each in told:
        if not isinstance(each, Mapping):
            yield role, _text(each), {}
            continue
        # A choice of a chat has its message below it; one of a completion has a text.
        message = each.get("message")
        within = message if isinstance(message, Mapping) else each
        reason = each.get("finish_reason")
        extra = {"finish_reason": reason[:_NAME_MAX]} if isinstance(reason, str) else {}
        told_role = within.get("role")
        said_by = told_role[:_NAME_MAX] if isinstance(told_role, str) else role
        yield said_by, _text(within), extra


def _text(told: Any) -> str:
    """Return the text of a message or body, and all else as JSON."""
    if isinstance(told, str):
        return told
    if isinstance(told, Mapping):
        for name in _TEXTS:
            if isinstance(told.get(name), str):
                return str(told[name])
    return _as_json(told)


def _as_json(told: Any) -> str:
    """Return JSON; an empty text of what has none, such as half a character."""
    try:
        return orjson.dumps(told).decode()
    except orjson.JSONEncodeError:
        return ""
