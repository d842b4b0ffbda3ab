"""Answers of the simulated backend, in the form of an OpenAI-compatible server."""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from topics import InferenceRequest, Profile, Usage

EMBEDDING_DIMENSIONS = 384
_WORDS = ("the", "yard", "sorts", "each", "wagon", "to", "its", "own", "track", "and")


def output_tokens(
    request: InferenceRequest,
    profile: Profile,
    usual_tokens: Mapping[str, int],
    room_tokens: int,
) -> int:
    """Return the length of the simulated reply, in tokens.

    ``metadata.simulate.output_tokens`` gives it (for replays of traces with known lengths, which
    the router must not know), else the client's hint; else it is drawn around the class's usual
    length, the same for the same request: a length that routers learn from must not come from
    their estimate. The body's own limit always holds, and so does ``room_tokens``,
    what the context has left: a server ends the reply there. An embedding has no reply to count.
    """
    if profile.operation == "embeddings":
        return 0
    tokens = _wanted(request)
    if tokens is None:
        tokens = request.hints.output_tokens
    if tokens is None:
        tokens = _drawn(request.id, usual_tokens.get(profile.task, profile.output_tokens))
    limit = request.output_tokens_max
    tokens = tokens if limit is None else min(tokens, limit)
    return min(tokens, max(1, room_tokens))


def prefix_tokens(request: InferenceRequest, input_tokens: int) -> int:
    """Return how much of a prompt its session had before, and may be cached.

    ``metadata.simulate.prefix_tokens`` says so; else a turn is taken to go on where the last one
    ended. Some of a prompt is always computed.
    """
    known = _simulated(request, "prefix_tokens")
    return min(input_tokens - 1, input_tokens if known is None else known)


def _wanted(request: InferenceRequest) -> int | None:
    return _simulated(request, "output_tokens")


def _simulated(request: InferenceRequest, name: str) -> int | None:
    metadata = request.metadata
    simulate = metadata.get("simulate") if isinstance(metadata, dict) else None
    tokens = simulate.get(name) if isinstance(simulate, dict) else None
    return tokens if isinstance(tokens, int) and tokens >= 0 else None


def _drawn(request_id: str, expected: int) -> int:
    """Draw from an exponential with mean ``expected``, seeded by the request's id."""
    if expected == 0:
        return 0
    digest = hashlib.sha256(request_id.encode()).digest()
    share = (int.from_bytes(digest[:8], "big") + 1) / 2**64
    return max(1, round(-math.log(share) * expected))


def usage_of(profile: Profile, tokens: int, cached: int) -> Usage:
    """Return the usage of replies of so many tokens each."""
    return Usage(profile.input_tokens, profile.answers * tokens, min(cached, profile.input_tokens))


def body(
    request: InferenceRequest,
    profile: Profile,
    variant: str,
    counts: tuple[int, int],
    created: float,
    ended: str,
) -> dict[str, Any]:
    """Return the response body for an operation; for an unknown one, that of a completion.

    Args:
        request: whose answer it is.
        profile: of the request.
        variant: the variant that computed it.
        counts: tokens of each reply, and tokens of the prompt that were cached.
        created: epoch seconds.
        ended: its finish reason.
    """
    tokens, cached = counts
    answer = _ANSWERS.get(profile.operation, _completion)(request, profile, tokens, ended)
    written = profile.answers * tokens
    usage: dict[str, Any] = {
        "prompt_tokens": profile.input_tokens,
        "total_tokens": profile.input_tokens + written,
    }
    if profile.operation != "embeddings":
        usage["completion_tokens"] = written
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return (
        {"id": f"sim-{request.id}", "created": int(created), "model": variant}
        | answer
        | {"usage": usage}
    )


def piece(
    request: InferenceRequest,
    operation: str,
    variant: str,
    since: tuple[int, int],
    created: float,
    ended: str | None = None,
    index: int = 0,
) -> dict[str, Any]:
    """Return a chunk of a streamed chat or completion, as an OpenAI-compatible server sends it.

    Args:
        request: whose answer it is.
        operation: ``chat`` or ``completions``.
        variant: the variant that computes it.
        since: tokens that were sent before, and those there are now.
        created: epoch seconds.
        ended: the finish reason, if the answer ends with it.
        index: of the choice that it is of.
    """
    before, tokens = since
    text = _text(tokens)[len(_text(before)) :]
    choice: dict[str, Any] = {"index": index}
    if operation == "chat":
        choice["delta"] = {"content": text} if before else {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    choice["finish_reason"] = ended
    return {
        "id": f"sim-{request.id}",
        "object": "chat.completion.chunk" if operation == "chat" else "text_completion",
        "created": int(created),
        "model": variant,
        "choices": [choice],
    }


def choices_of(request: InferenceRequest, profile: Profile) -> list[int]:
    """Return which of all replies the client gets, in the order of its choices.

    Those to one prompt stand together; ``best_of`` has more written than are shown.
    """
    shown = min(request.choices, profile.replies)
    return [
        prompt * profile.replies + reply
        for prompt in range(profile.prompts)
        for reply in range(shown)
    ]


def _text(tokens: int) -> str:
    return " ".join(_WORDS[i % len(_WORDS)] for i in range(tokens))


def finish_reason(request: InferenceRequest, tokens: int, room_tokens: int) -> str:
    """Return why a reply of so many tokens ended: by a limit, or by itself."""
    return "length" if tokens == request.output_tokens_max or tokens >= room_tokens else "stop"


def _chat(request: InferenceRequest, profile: Profile, tokens: int, ended: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": _text(tokens)}
    return {
        "object": "chat.completion",
        "choices": [
            {"index": index, "message": message, "finish_reason": ended}
            for index, _ in enumerate(choices_of(request, profile))
        ],
    }


def _completion(
    request: InferenceRequest, profile: Profile, tokens: int, ended: str
) -> dict[str, Any]:
    return {
        "object": "text_completion",
        "choices": [
            {"index": index, "text": _text(tokens), "finish_reason": ended}
            for index, _ in enumerate(choices_of(request, profile))
        ],
    }


def _embeddings(
    request: InferenceRequest, _profile: Profile, _tokens: int, _ended: str
) -> dict[str, Any]:
    rows = [
        {"object": "embedding", "index": index, "embedding": _vector(f"{request.id}/{index}")}
        for index in range(count_inputs(request))
    ]
    return {"object": "list", "data": rows}


def count_inputs(request: InferenceRequest) -> int:
    """Return the number of texts of a request; a list of numbers is one, given as token ids."""
    inputs = request.body.get("input")
    if not isinstance(inputs, list) or not inputs or isinstance(inputs[0], int):
        return 1
    return len(inputs)


def _vector(seed: str) -> list[float]:
    """Return a unit vector that depends only on the seed."""
    stretched = hashlib.shake_256(seed.encode()).digest(EMBEDDING_DIMENSIONS)
    raw = [byte - 127.5 for byte in stretched]
    norm = math.sqrt(sum(value * value for value in raw))
    return [round(value / norm, 6) for value in raw]


def _moderations(
    request: InferenceRequest, _profile: Profile, _tokens: int, _ended: str
) -> dict[str, Any]:
    result = {"flagged": False, "categories": {}, "category_scores": {}}
    return {"results": [result] * count_inputs(request)}


_ANSWERS: dict[str, Callable[[InferenceRequest, Profile, int, str], dict[str, Any]]] = {
    "chat": _chat,
    "completions": _completion,
    "embeddings": _embeddings,
    "moderations": _moderations,
}
