"""Members that every body must have, whatever model server it goes to."""

from typing import Any

from gateway.http.errors import ApiError
from topics.records.request import ID_CHARACTERS_MAX, TOKENS_MAX

_REQUIRED = {
    "chat": "messages",
    "completions": "prompt",
    "embeddings": "input",
    "moderations": "input",
}
_REPLIED = frozenset({"chat", "completions"})
_LIMITS = ("max_tokens", "max_completion_tokens")
_COUNTS = ("n", "best_of")
_ENCODINGS = ("float", "base64")


def check_body(operation: str, body: dict[str, Any]) -> None:
    """Check the fields that Shunter itself looks at; all others are the model server's.

    Raises:
        ApiError: one is missing or unfit (400).
    """
    model = body.get("model")
    if model is None:
        raise missing("model")
    if not isinstance(model, str):
        raise wrong("model", "is a string", "invalid_type")
    if not 1 <= len(model) <= ID_CHARACTERS_MAX:
        raise wrong("model", f"has 1 to {ID_CHARACTERS_MAX} characters")
    _check_content(operation, body)
    _check_limits(body)
    if operation in _REPLIED:
        _check_answers(body)
    _check_stream(operation, body)
    metadata = body.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise wrong("metadata", "is an object", "invalid_type")
    if operation == "embeddings" and body.get("encoding_format") is not None:
        encoding = body["encoding_format"]
        if not isinstance(encoding, str):
            raise wrong("encoding_format", "is a string", "invalid_type")
        if encoding not in _ENCODINGS:
            raise wrong("encoding_format", f"is one of {', '.join(_ENCODINGS)}")


def missing(name: str) -> ApiError:
    """Return the error for a field that is not there."""
    message = f"the body has no {name}"
    return ApiError(400, "missing_required_parameter", message, param=name)


def _check_content(operation: str, body: dict[str, Any]) -> None:
    name = _REQUIRED[operation]
    content = body.get(name)
    if content is None:
        raise missing(name)
    if operation == "chat":
        if not isinstance(content, list):
            raise wrong(name, "is an array of messages", "invalid_type")
        for number, each in enumerate(content):
            if not isinstance(each, dict):
                raise wrong(f"{name}[{number}]", "is an object", "invalid_type")
            if "role" not in each:
                raise missing(f"{name}[{number}].role")
    elif not isinstance(content, str | list):
        raise wrong(name, "is a string or an array", "invalid_type")
    if isinstance(content, list) and not content:
        raise wrong(name, "is empty")


def _check_limits(body: dict[str, Any]) -> None:
    for name in _LIMITS:
        limit = body.get(name)
        if limit is not None and type(limit) is not int:
            raise wrong(name, "is a whole number", "invalid_type")
        if limit is not None and not 1 <= limit <= TOKENS_MAX:
            raise wrong(name, f"is a whole number from 1 to {TOKENS_MAX:,}")


def _check_answers(body: dict[str, Any]) -> None:
    """Check how many answers are asked for, which some servers fail on where it is no number."""
    for name in _COUNTS:
        count = body.get(name)
        if count is not None and type(count) is not int:
            raise wrong(name, "is a whole number", "invalid_type")
        if count is not None and count < 1:
            raise wrong(name, "is a whole number from 1")
    best_of = body.get("best_of")
    if best_of is not None and best_of < (body.get("n") or 1):
        raise wrong("best_of", "is n or more")


def _check_stream(operation: str, body: dict[str, Any]) -> None:
    stream, options = body.get("stream"), body.get("stream_options")
    if stream is not None and not isinstance(stream, bool):
        raise wrong("stream", "is true or false", "invalid_type")
    if stream and operation not in _REPLIED:
        raise wrong("stream", f"is not for {operation}: the answer comes in one piece")
    if options is not None and not isinstance(options, dict):
        raise wrong("stream_options", "is an object", "invalid_type")
    usage = (options or {}).get("include_usage")
    if usage is not None and not isinstance(usage, bool):
        raise wrong("stream_options.include_usage", "is true or false", "invalid_type")


def wrong(name: str, what: str, code: str = "invalid_value") -> ApiError:
    """Return the error for a field that is not what it has to be; ``what`` says what it is."""
    verb = "must be" if what.startswith("is ") and what != "is empty" else None
    told = f"{name} {verb} {what[3:]}" if verb else f"{name} {what}"
    return ApiError(400, code, told, param=name)
