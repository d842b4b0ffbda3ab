"""Attributes of a call's request and answer, as OpenTelemetry's GenAI conventions name them.

Numbers and words of closed sets alone: no text of a request is in a span unless it is switched on.
"""

from collections.abc import Mapping
from typing import Any

from opentelemetry.util.types import AttributeValue

_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_REALS = ("temperature", "top_p", "frequency_penalty", "presence_penalty")
_OUTPUT_TYPES = {"json_object": "json", "json_schema": "json", "text": "text"}
_INT_MAX = 2**63 - 1


def asked(
    body: dict[str, Any], conversation: str | None, tokens_max: int | None
) -> Mapping[str, AttributeValue | None]:
    """Return attributes of a request; what it doesn't say is None, and so is what is no number.

    Args:
        body: of the request, by whoever wrote it.
        conversation: what names its conversation.
        tokens_max: its own limit on the reply.
    """
    choices, wanted = _whole(body.get("n")), body.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    reals = {f"gen_ai.request.{name}": _real(body.get(name)) for name in _REALS}
    return reals | {
        "gen_ai.conversation.id": conversation,
        "gen_ai.output.type": _OUTPUT_TYPES.get(kind) if isinstance(kind, str) else None,
        "gen_ai.request.choice.count": None if choices == 1 else choices,
        "gen_ai.request.max_tokens": _whole(tokens_max),
        "gen_ai.request.seed": _whole(body.get("seed")),
    }


def ended(answer: Any) -> Mapping[str, AttributeValue | None]:
    """Return attributes of an answer's body: why each choice ended, as far as OpenAI has a word."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    each = choices if isinstance(choices, list) else []
    reasons = [choice.get("finish_reason") for choice in each if isinstance(choice, dict)]
    known = [reason for reason in reasons if isinstance(reason, str) and reason in _REASONS]
    return {"gen_ai.response.finish_reasons": known or None}


def _whole(value: Any) -> int | None:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _INT_MAX
    return value if is_whole else None


def _real(value: Any) -> float | None:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_real and abs(value) < _INT_MAX else None
