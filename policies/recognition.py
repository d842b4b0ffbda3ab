"""Recognition of a class: from what a request of a plain OpenAI client holds.

What operation, body and length show by themselves comes first, then the rules of the policy.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from policies.config.policy import Policy
from policies.config.recognition import RecognitionRule, words_in
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
# Of which a text with code has one; they are sought in a tenth of the time.
_CODE_MARKS = ("```", "#include", "<?php", "<html")
_CODE_WORDS = frozenset(b"def class import public function select create const let var".split())


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
        limits = (input_tokens, request.output_tokens_max)
        text = _text(request.body)
        words = words_in(text)
        for rule in policy.recognize:
            if _holds(rule, request.body, text, words, *limits):
                return Recognized(rule.task, rule.confidence, is_kept=not rule.loosens)
    return None


def _shown(request: InferenceRequest, operation: str) -> Iterator[tuple[str, float]]:
    if operation in _CLASS_OF_OPERATION:
        yield _CLASS_OF_OPERATION[operation], 0.95
    if any(part.get("type") in _AUDIO_PARTS for part in _parts(request.body)):
        yield "audio_turn", 0.9
    if request.body.get("tools"):
        yield "agent_step", 0.8


def _holds(
    rule: RecognitionRule,
    body: dict[str, Any],
    text: str,
    words: frozenset[bytes] | None,
    input_tokens: int,
    output_limit: int | None,
) -> bool:
    """Return whether all that a rule asks for is so; what is cheap to see is looked at first."""
    temperature = body.get("temperature")
    known = temperature if isinstance(temperature, int | float) else None
    return (
        (rule.tools is None or bool(body.get("tools")) is rule.tools)
        and _is_within(input_tokens, rule.input_tokens_min, rule.input_tokens_max)
        and _is_within(output_limit, rule.output_tokens_min, rule.output_tokens_max)
        and _is_within(known, rule.temperature_min, None)
        and (rule.has_code is None or _has_code(text, words) is rule.has_code)
        and (rule.said is None or rule.said.are_in(text, words))
        and (rule.unsaid is None or not rule.unsaid.are_in(text, words))
    )


def _has_code(text: str, words: frozenset[bytes] | None) -> bool:
    may_have = (
        words is None
        or not _CODE_WORDS.isdisjoint(words)
        or any(mark in text for mark in _CODE_MARKS)
    )
    return may_have and _CODE.search(text) is not None


def _is_within(value: float | None, least: float | None, most: float | None) -> bool:
    if least is None and most is None:
        return True
    return (
        value is not None and (least is None or value >= least) and (most is None or value <= most)
    )


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
