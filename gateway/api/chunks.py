"""Chunks of a stream in the form that OpenAI's clients expect, whatever the server sends."""

from collections.abc import Iterator
from typing import Any

import orjson

from gateway.api.answers import body_of, comment_of, disclosed, tier_told
from gateway.api.translation import Wanted
from gateway.http.errors import ApiError
from topics import Result

_OBJECTS = {"chat": "chat.completion.chunk", "completions": "text_completion"}
_ID_PREFIXES = {"chat": "chatcmpl-", "completions": "cmpl-"}
DONE = b"data: [DONE]\n\n"


def event(data: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


class ChunkForm:
    """Gives the chunks of one stream one id, the model asked for, and the role first."""

    def __init__(self, request_id: str, wanted: Wanted, created: float) -> None:
        self._wanted = wanted
        self._is_chat = wanted.operation == "chat"
        self._request_id = request_id
        self._created = created
        self._head: dict[str, Any] | None = None
        self._begun: set[int] = set()
        self._finished: set[int] = set()
        self._texts: dict[int, list[str]] = {}
        self._is_plain = True

    def events(self, chunk: Any) -> Iterator[bytes]:
        """Yield the events for a chunk of the server's; none for one without choices."""
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        if not isinstance(choices, list) or not choices:
            return
        head = self._headed(chunk)
        rest = {k: v for k, v in chunk.items() if k not in head and k not in {"choices", "usage"}}
        told = []
        for choice in choices:
            index = choice.get("index", 0) if isinstance(choice, dict) else 0
            delta = choice.get("delta") or {}
            # OpenAI's always has it; some servers, LiteLLM's for one, leave it out until the end.
            told.append({"finish_reason": None} | choice)
            if self._is_chat and index not in self._begun:
                self._begun.add(index)
                if delta.get("role") is None:
                    yield self._event({}, [_role(index)])
            elif "role" in delta:
                # Ollama says it with each piece, and OpenAI's client would put all together.
                told[-1]["delta"] = {k: v for k, v in delta.items() if k != "role"}
            self._remember(index, choice)
        yield self._event(rest, told)

    def whole(self, body: Any) -> Iterator[bytes]:
        """Yield the events for an answer that came in one piece."""
        for choice in body.get("choices") or () if isinstance(body, dict) else ():
            head = {k: body[k] for k in ("id", "created", "system_fingerprint") if k in body}
            for piece in _pieces_of(choice, is_chat=self._is_chat):
                yield from self.events(head | {"choices": [piece]})

    def rest_of(self, body: Any) -> Iterator[bytes] | None:
        """Return the events for what is missing of an answer; None if that can't be told.

        It can be told of answers that are text alone.
        """
        choices = body.get("choices") if isinstance(body, dict) else None
        if not self._is_plain or not isinstance(choices, list):
            return None
        pieces: list[dict[str, Any]] = []
        for choice in choices:
            index = choice.get("index", 0)
            said = choice.get("message") if self._is_chat else {"content": choice.get("text")}
            text = (said or {}).get("content") or ""
            sent = "".join(self._texts.get(index, ()))
            if not text.startswith(sent) or (said or {}).get("tool_calls"):
                return None
            if tail := text[len(sent) :]:
                told = {"delta": {"content": tail}} if self._is_chat else {"text": tail}
                pieces.append({"index": index, "finish_reason": None} | told)
        return (each for piece in pieces for each in self.events({"choices": [piece]}))

    def finish(self, body: Any) -> Iterator[bytes]:
        """Yield the end of each choice that none of its pieces has told.

        Workers publish what brings an answer on; that it has ended is in the result.
        """
        for choice in body.get("choices") or () if isinstance(body, dict) else ():
            index = choice.get("index", 0)
            if index not in self._finished:
                end: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
                piece = {"index": index, "finish_reason": choice.get("finish_reason")} | end
                yield from self.events({"choices": [piece]})

    def last(self, result: Result) -> list[bytes]:
        """Return what ends the stream: the usage where that was asked for, and the comment."""
        usage = [self._usage(result)] if self._wanted.has_usage_chunk else []
        return [*usage, comment_of(result), DONE]

    def failure(self, error: ApiError) -> list[bytes]:
        """Return the event of an error, after which nothing comes."""
        return [event(error.body())]

    def _usage(self, result: Result) -> bytes:
        body = body_of(result)
        told = body.get("usage") if isinstance(body, dict) else None
        if not isinstance(told, dict):
            used = result.usage
            read, written = (0, 0) if used is None else (used.input_tokens, used.output_tokens)
            told = {
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
            }
        head = self._headed({})
        return event(head | {"choices": [], "usage": told, "shunter": disclosed(result)})

    def _headed(self, chunk: dict[str, Any]) -> dict[str, Any]:
        if self._head is None:
            name = chunk.get("id")
            default = _ID_PREFIXES[self._wanted.operation] + self._request_id
            created = chunk.get("created")
            self._head = {
                "id": name if isinstance(name, str) and name else default,
                "object": _OBJECTS[self._wanted.operation],
                "created": created if type(created) is int else int(self._created),
                "model": self._wanted.model,
            }
            if self._is_chat:
                self._head["service_tier"] = tier_told(self._wanted.tier)
        return self._head

    def _event(self, rest: dict[str, Any], choices: list[Any]) -> bytes:
        chunk = self._headed({}) | rest | {"choices": choices}
        return event(chunk | {"usage": None} if self._wanted.has_usage_chunk else chunk)

    def _remember(self, index: int, choice: Any) -> None:
        if choice.get("finish_reason") is not None:
            self._finished.add(index)
        said = choice.get("delta") if self._is_chat else {"content": choice.get("text")}
        for name, value in (said or {}).items():
            if name == "content" and isinstance(value, str):
                self._texts.setdefault(index, []).append(value)
            elif name != "role" and value:
                self._is_plain = False


def _role(index: int) -> dict[str, Any]:
    delta = {"role": "assistant", "content": ""}
    return {"index": index, "delta": delta, "finish_reason": None}


def _pieces_of(choice: Any, *, is_chat: bool) -> Iterator[dict[str, Any]]:
    """Yield a choice of a whole answer as the pieces of a stream."""
    index, reason = choice.get("index", 0), choice.get("finish_reason")
    if not is_chat:
        told = {k: v for k, v in choice.items() if k not in {"index", "finish_reason"}}
        yield {"index": index, "finish_reason": reason} | told
        return
    said = {k: v for k, v in (choice.get("message") or {}).items() if k != "role" and v is not None}
    calls = said.get("tool_calls")
    if isinstance(calls, list):
        said["tool_calls"] = [
            {"index": n} | call if isinstance(call, dict) else call for n, call in enumerate(calls)
        ]
    piece = {"index": index, "delta": said, "finish_reason": None}
    if choice.get("logprobs") is not None:
        piece["logprobs"] = choice["logprobs"]
    yield piece
    yield {"index": index, "delta": {}, "finish_reason": reason}
