"""Recognition of a class: from what a request of a plain OpenAI client holds.

What operation, body and length show by themselves comes first, then the rules of the policy.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from policies.config.policy import Policy
from policies.config.recognition import CODE_WORDS, RecognitionRule, words_in
from topics import InferenceRequest

# Instructions stand at the ends of a prompt; between them is what they are about.
INSTRUCTIONS_CHARACTERS = 1_000
END_CHARACTERS = 500

_CLASS_OF_OPERATION = {"embeddings": "embedding", "moderations": "safety_classification"}
# A tuple, because what stands at `type` may be a list, which no set can be asked for.
_AUDIO_PARTS = ("input_audio", "audio_url")
_INSTRUCTING = ("system", "developer")
_CODE = re.compile(
    r"```|^\s*(?:def |class |import |from \w+ import |#include|public (?:class|static)"
    r"|function \w*\(|SELECT .+ FROM |CREATE TABLE |const \w+ =|let \w+ =|var \w+ =|<\?php|<html)"
    r"|\bdef \w+\(",
    re.MULTILINE,
)
# A text with code has one of these, or of `CODE_WORDS`; they are sought in a tenth of the time.
_CODE_MARKS = ("```", "#include", "<?php", "<html")


class Recognized(NamedTuple):
    """A class that was recognised, and how sure that is.

    ``is_kept``: what it asks for less than the default class holds as there.
    """

    task: str
    confidence: float
    is_kept: bool


def recognize(
    request: InferenceRequest, policy: Policy, operation: str, input_tokens: int
) -> Recognized | None:
    """Return the class that a request without one is of; None if nothing shows it.

    Args:
        request: as parsed from the ingest topic.
        policy: the policy in force, with its rules.
        operation: of the request.
        input_tokens: of its prompt, as known.
    """
    for name, confidence in _shown(request, operation):
        if name in policy.classes:
            return Recognized(name, confidence, is_kept=False)
    if input_tokens >= policy.long_context_tokens and "long_context" in policy.classes:
        return Recognized("long_context", 0.8, is_kept=False)
    if policy.recognize:
        seen = _seen(request, policy, input_tokens)
        for rule in policy.recognize:
            if _holds(rule, seen):
                return Recognized(rule.task, rule.confidence, is_kept=not rule.loosens)
    return None


class _Seen(NamedTuple):
    """A request as rules ask for it; ``words`` are those of its text that any rule looks for."""

    text: str
    words: frozenset[bytes] | None
    has_tools: bool
    counts: dict[str, float | None]


def _seen(request: InferenceRequest, policy: Policy, input_tokens: int) -> _Seen:
    body, text = request.body, _text(request.body)
    temperature = body.get("temperature")
    counts = {
        "input_tokens": input_tokens,
        "output_tokens": request.output_tokens_max,
        "temperature": temperature if isinstance(temperature, (int, float)) else None,
    }
    return _Seen(text, words_in(text, policy.sought_words), bool(body.get("tools")), counts)


def _shown(request: InferenceRequest, operation: str) -> Iterator[tuple[str, float]]:
    if operation in _CLASS_OF_OPERATION:
        yield _CLASS_OF_OPERATION[operation], 0.95
    parts = _parts(request.body)
    if parts and any(part.get("type") in _AUDIO_PARTS for part in parts):
        yield "audio_turn", 0.9
    if request.body.get("tools"):
        yield "agent_step", 0.8


def _holds(rule: RecognitionRule, seen: _Seen) -> bool:
    """Return whether all that a rule asks for is so; what is cheap to see is looked at first."""
    if rule.tools is not None and seen.has_tools is not rule.tools:
        return False
    for name, least, most in rule.ranges:
        value = seen.counts[name]
        if value is None or not least <= value <= most:
            return False
    text, words = seen.text, seen.words
    return (
        (rule.has_code is None or _has_code(text, words) is rule.has_code)
        and (rule.said is None or rule.said.are_in(text, words))
        and (rule.unsaid is None or not rule.unsaid.are_in(text, words))
    )


def _has_code(text: str, words: frozenset[bytes] | None) -> bool:
    may_have = words is None or not CODE_WORDS.isdisjoint(words) or _has_mark(text)
    return may_have and _CODE.search(text) is not None


def _has_mark(text: str) -> bool:
    # A sign is found in a tenth of the time of a word, and few texts have those.
    return any(mark in text for mark in _CODE_MARKS if mark[0] in text)


def _text(body: dict[str, Any]) -> str:
    """Return the instructions of a body, and both ends of what the user says last."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        prompt = body.get("prompt")
        return _ends(prompt) if isinstance(prompt, str) else ""
    said = [m for m in messages if isinstance(m, dict)]
    instructions = [_content(m) for m in said if m.get("role") in _INSTRUCTING]
    last = next((_content(m) for m in reversed(said) if m.get("role") == "user"), "")
    return "\n".join([*(text[:INSTRUCTIONS_CHARACTERS] for text in instructions[:2]), _ends(last)])


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _ends(text: str) -> str:
    if len(text) <= 2 * END_CHARACTERS:
        return text
    return f"{text[:END_CHARACTERS]}\n{text[-END_CHARACTERS:]}"


def _parts(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return []
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    return [
        part
        for content in contents
        if isinstance(content, list)
        for part in content
        if isinstance(part, dict)
    ]
