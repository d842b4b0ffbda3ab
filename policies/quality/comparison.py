"""Comparison: what is compared of an answer, and how much two differ (0: the same, to 1)."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Excerpt = dict[str, Any]
"""The part of an answer that is compared: ``texts``, ``calls``, ``flags`` or ``vectors``."""

JUDGE = "judge:"
"""Begins the name of a comparison by an extension."""


def excerpt(body: object) -> Excerpt | None:
    """Return what is compared of an answer in the form of the OpenAI API; None if it is none.

    Args:
        body: of a chat, completion, embedding or moderation.
    """
    if not isinstance(body, dict):
        return None
    choices, data, results = body.get("choices"), body.get("data"), body.get("results")
    if _is_list(choices):
        messages = [_message(choice) for choice in choices]
        return {
            "texts": [_text(m.get("content", m.get("text"))) for m in messages],
            "calls": [_calls(m.get("tool_calls")) for m in messages],
        }
    if _is_list(data):
        vectors = [each.get("embedding") for each in data]
        return {"vectors": vectors} if all(map(_is_vector, vectors)) else None
    if _is_list(results):
        return {"flags": [_flags(each) for each in results]}
    return None


def is_comparable(body: Mapping[str, Any], operation: str, compare: str) -> bool:
    """Return True if two answers to a request can be compared so.

    Words are only expected to agree where the request asks for the likeliest ones, and for one
    answer.
    """
    if body.get("n") not in (None, 1):
        return False
    if compare == "embedding":
        return operation == "embeddings" and body.get("encoding_format") in (None, "float")
    if compare in ("greedy", "tokens"):
        return operation in ("chat", "completions") and body.get("temperature") == 0
    return operation != "embeddings"


def difference(compare: str, first: Excerpt, second: Excerpt) -> float | None:
    """Return how much two answers differ, 0 to 1; None if they can't be compared so.

    Args:
        compare: one of ``COMPARISONS``.
        first: what an answer has.
        second: what the other has.
    """
    found = COMPARISONS.get(compare)
    return None if found is None else found(first, second)


def _labels(first: Excerpt, second: Excerpt) -> float | None:
    """Return 0 if labels, tool calls and flags are the same, else 1."""
    if first.keys() != second.keys() or "vectors" in first:
        return None
    alike = [list(map(_label, each.get("texts", ()))) for each in (first, second)]
    rest = [(each.get("calls"), each.get("flags")) for each in (first, second)]
    return float(alike[0] != alike[1] or rest[0] != rest[1])


def _tool_calls(first: Excerpt, second: Excerpt) -> float | None:
    """Return 0 if the same tools are called with the same arguments, else 1."""
    if "calls" not in first or "calls" not in second:
        return None
    return float(first["calls"] != second["calls"])


def _greedy(first: Excerpt, second: Excerpt) -> float | None:
    """Return the share of the words from the first one on that differs."""
    words = _words(first), _words(second)
    if words[0] is None or words[1] is None:
        return None
    same = 0
    for one, other in zip(*words, strict=False):
        if one != other:
            break
        same += 1
    longest = max(map(len, words))
    return 1.0 - same / longest if longest else 0.0


def _tokens(first: Excerpt, second: Excerpt) -> float | None:
    """Return the share of the words that only one of them has, wherever they stand."""
    words = _words(first), _words(second)
    if words[0] is None or words[1] is None:
        return None
    both = sum((Counter(words[0]) & Counter(words[1])).values())
    all_words = len(words[0]) + len(words[1])
    return 1.0 - 2 * both / all_words if all_words else 0.0


def _embedding(first: Excerpt, second: Excerpt) -> float | None:
    """Return the mean cosine distance, at most 1."""
    pairs = list(zip(first.get("vectors", ()), second.get("vectors", ()), strict=False))
    if not pairs or len(first["vectors"]) != len(second["vectors"]):
        return None
    distances = [_distance(*pair) for pair in pairs]
    known = [each for each in distances if each is not None]
    return sum(known) / len(known) if len(known) == len(distances) else None


def _distance(one: Sequence[float], other: Sequence[float]) -> float | None:
    norms = math.hypot(*one) * math.hypot(*other)
    if len(one) != len(other) or not 0 < norms < math.inf:
        return None
    cosine = sum(a * b for a, b in zip(one, other, strict=True)) / norms
    return min(1.0, max(0.0, 1.0 - cosine))


COMPARISONS: dict[str, Callable[[Excerpt, Excerpt], float | None]] = {
    "labels": _labels,
    "tool_calls": _tool_calls,
    "greedy": _greedy,
    "tokens": _tokens,
    "embedding": _embedding,
}


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(e, dict) for e in value)


def _message(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message")
    return message if isinstance(message, dict) else choice


def _text(content: object) -> str:
    return content if isinstance(content, str) else ""


def _label(text: str) -> str:
    return text.strip().strip("\"'.!*").casefold()


def _words(answer: Excerpt) -> list[str] | None:
    texts = answer.get("texts")
    return None if texts is None else " ".join(map(str, texts)).split()


def _calls(calls: object) -> list[list[Any]]:
    """Return name and arguments of each call; the ids are the server's own."""
    found = []
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            found.append([function.get("name"), _arguments(function.get("arguments"))])
    return found


def _arguments(text: object) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return text


def _flags(result: dict[str, Any]) -> list[Any]:
    categories = result.get("categories")
    named = categories if isinstance(categories, dict) else {}
    return [result.get("flagged"), sorted(str(name) for name, is_so in named.items() if is_so)]


def _is_vector(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, int | float) and math.isfinite(each) for each in value)
    )
