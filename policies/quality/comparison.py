"""Comparison: what is compared of an answer, and how much two differ (0: the same, to 1)."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from policies.quality.sequential_test import GROUPS

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
    choices, data, results = map(_members, map(body.get, ("choices", "data", "results")))
    if choices:
        messages = [_message(choice) for choice in choices]
        return {
            "texts": [_text(m.get("content", m.get("text"))) for m in messages],
            "calls": [_calls(m.get("tool_calls")) for m in messages],
        }
    if data:
        vectors = [each.get("embedding") for each in data]
        return {"vectors": vectors} if all(map(_is_vector, vectors)) else None
    if results:
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


def answer_group(compare: str, task: str, reference: Excerpt) -> int | None:
    """Return the group of a reference's answer, from 0 to below ``GROUPS``; None: it has none.

    A label, the names of the called tools and the flags say what kind of answer it is, so that
    answers of each kind can be held against a limit of their own. Words are of no kind.

    Args:
        compare: how answers are compared.
        task: the request's class: one label of two classes is two kinds.
        reference: what is compared of the reference's answer.
    """
    if compare not in ("labels", "tool_calls"):
        return None
    tools = [[call[0] for call in calls] for calls in reference.get("calls", ())]
    kind: list[Any] = [task, tools]
    if compare == "labels":
        kind += [[_label(text) for text in reference.get("texts", ())], reference.get("flags")]
    digest = blake2b(json.dumps(kind).encode(), digest_size=8, person=b"answers")
    return int.from_bytes(digest.digest()) % GROUPS


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
    one, other = _words(first), _words(second)
    if one is None or other is None:
        return None
    longest = max(len(one), len(other))
    differs = (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    same = next(differs, min(len(one), len(other)))
    return 1.0 - same / longest if longest else 0.0


def _tokens(first: Excerpt, second: Excerpt) -> float | None:
    """Return the share of the words that only one of them has, wherever they stand."""
    one, other = _words(first), _words(second)
    if one is None or other is None:
        return None
    both = sum((Counter(one) & Counter(other)).values())
    words = len(one) + len(other)
    return 1.0 - 2 * both / words if words else 0.0


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


def _members(value: object) -> list[dict[str, Any]]:
    """Return the objects of a list; nothing if it is none or has anything else."""
    members = value if isinstance(value, list) else []
    return members if all(isinstance(each, dict) for each in members) else []


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
