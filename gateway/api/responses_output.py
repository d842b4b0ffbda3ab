"""The Responses API's answers, made of a chat completion: items of output and their events."""

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.api.answers import answer_body, body_of, tier_told
from gateway.api.translation import Wanted
from topics import Result

Event = dict[str, Any]

# Of the request, what a response repeats, with what stands for it where the request has none.
_REPEATED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "user": None,
}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def response_body(
    request_id: str, wanted: Wanted, created_at: float, output: list[Any], reason: str | None
) -> dict[str, Any]:
    """Return a response; ``reason`` is the chat completion's reason to end, None before it did."""
    asked = wanted.response or {}
    why = _INCOMPLETE.get(reason or "")
    status = "in_progress" if reason is None else "completed" if why is None else "incomplete"
    repeated = {
        name: default if asked.get(name) is None else asked[name]
        for name, default in _REPEATED.items()
    }
    reasoning = asked.get("reasoning") or {}
    return repeated | {
        "id": f"resp_{request_id}",
        "object": "response",
        "created_at": int(created_at),
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None if why is None else {"reason": why},
        "model": wanted.model,
        "output": output,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "service_tier": tier_told(wanted.tier),
        # None is kept, whatever the request says.
        "store": False,
        "truncation": "disabled",
        "usage": None,
    }


def usage_of(result: Result) -> dict[str, Any] | None:
    """Return the tokens of a result, in the server's words where it tells them."""
    told, used = members(members(body_of(result)).get("usage")), result.usage
    read, written = told.get("prompt_tokens"), told.get("completion_tokens")
    if type(read) is not int or type(written) is not int:
        if used is None:
            return None
        read, written = used.input_tokens, used.output_tokens
    cached = _detail(told, "prompt_tokens_details", "cached_tokens")
    if cached is None:
        cached = 0 if used is None else used.cached_tokens
    thought = _detail(told, "completion_tokens_details", "reasoning_tokens")
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": thought or 0},
        "total_tokens": read + written,
    }


def _detail(told: Mapping[str, Any], group: str, name: str) -> int | None:
    found = members(told.get(group)).get(name)
    return found if type(found) is int else None


class OutputItems:
    """The items of one response, as deltas of a chat completion bring them on.

    A chat completion has thoughts, texts and calls side by side; a response has one item after the
    other. A call stays open until the end, since its deltas may come between those of another.
    """

    def __init__(self, request_id: str) -> None:
        self.output: list[dict[str, Any]] = []
        """All items so far, in their order; those that are open hold what has come."""
        self._request_id = request_id
        self._open: dict[str, Any] | None = None
        self._calls: dict[int, dict[str, Any]] = {}

    def take(self, delta: Mapping[str, Any]) -> Iterator[Event]:
        """Add a delta, or a whole message; yield the events of it."""
        thought = text_of(delta.get("reasoning_content")) or text_of(delta.get("reasoning"))
        if thought:
            yield from self._said("reasoning", "reasoning_text", thought)
        for kind, field in (("output_text", "content"), ("refusal", "refusal")):
            if text := text_of(delta.get(field)):
                yield from self._said("message", kind, text)
        calls = delta.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            index = members(call).get("index")
            yield from self._called(index if type(index) is int else number, members(call))

    def end(self, status: str) -> Iterator[Event]:
        """End what is open; ``status`` is ``completed`` or ``incomplete``."""
        if not self.output:
            yield from self._said("message", "output_text", "")
        yield from self._close(status)
        for item in self._calls.values():
            item["status"] = status
            place = self._place(item)
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **place, **told}
            yield self._done(item)

    def _place(self, item: Mapping[str, Any]) -> dict[str, Any]:
        at = next(n for n, each in enumerate(self.output) if each["id"] == item["id"])
        return {"item_id": item["id"], "output_index": at}

    def _new(self, kind: str, prefix: str, **fields: Any) -> dict[str, Any]:
        number = len(self.output)
        item = {"type": kind, "id": f"{prefix}_{self._request_id}_{number}"}
        item |= {"status": "in_progress", **fields}
        self.output.append(item)
        return item

    def _said(self, item_kind: str, part_kind: str, text: str) -> Iterator[Event]:
        item = self._open
        if item is None or item["type"] != item_kind:
            yield from self._close("completed")
            if item_kind == "message":
                item = self._new("message", "msg", role="assistant", content=[])
            else:
                item = self._new("reasoning", "rs", summary=[], content=[])
            self._open = item
            yield self._added(item, content=[])
        place, parts = self._place(item), item["content"]
        if not parts or parts[-1]["type"] != part_kind:
            yield from self._part_done(item)
            parts.append(_empty_part(part_kind))
            place["content_index"] = len(parts) - 1
            yield {"type": "response.content_part.added", **place, "part": dict(parts[-1])}
        part = parts[-1]
        part[_field(part_kind)] += text
        place["content_index"] = len(parts) - 1
        yield {"type": f"response.{part_kind}.delta", **place, "delta": text, **_more(part_kind)}

    def _part_done(self, item: dict[str, Any]) -> Iterator[Event]:
        parts = item["content"]
        if not parts:
            return
        part = parts[-1]
        place = self._place(item) | {"content_index": len(parts) - 1}
        kind, field = part["type"], _field(part["type"])
        yield {"type": f"response.{kind}.done", **place, field: part[field], **_more(kind)}
        yield {"type": "response.content_part.done", **place, "part": dict(part)}

    def _close(self, status: str) -> Iterator[Event]:
        item, self._open = self._open, None
        if item is not None:
            item["status"] = status
            yield from self._part_done(item)
            yield self._done(item)

    def _called(self, number: int, call: Mapping[str, Any]) -> Iterator[Event]:
        function = members(call.get("function"))
        item = self._calls.get(number)
        if item is None:
            yield from self._close("completed")
            item = self._calls[number] = self._new("function_call", "fc", arguments="")
            item["call_id"] = text_of(call.get("id")) or f"call_{item['id']}"
            item["name"] = text_of(function.get("name"))
            yield self._added(item, arguments="")
        if text := text_of(function.get("arguments")):
            item["arguments"] += text
            delta = {"type": "response.function_call_arguments.delta", "delta": text}
            yield delta | self._place(item)

    def _added(self, item: dict[str, Any], **empty: Any) -> Event:
        at = self._place(item)["output_index"]
        return {"type": "response.output_item.added", "output_index": at, "item": item | empty}

    def _done(self, item: dict[str, Any]) -> Event:
        at = self._place(item)["output_index"]
        return {"type": "response.output_item.done", "output_index": at, "item": dict(item)}


def _field(part_kind: str) -> str:
    return "refusal" if part_kind == "refusal" else "text"


def _more(part_kind: str) -> dict[str, Any]:
    return {"logprobs": []} if part_kind == "output_text" else {}


def _empty_part(kind: str) -> dict[str, Any]:
    part: dict[str, Any] = {"type": kind, _field(kind): ""}
    return part | {"annotations": [], "logprobs": []} if kind == "output_text" else part


def body_in_form(result: Result, wanted: Wanted) -> Any:
    """Return the body of a completed result, in the form that was asked for."""
    make = answer_body if wanted.response is None else response_answer
    return make(result, wanted)


def response_answer(result: Result, wanted: Wanted) -> dict[str, Any]:
    """Return the response for a completed result."""
    choice = first_choice(body_of(result))
    items = OutputItems(result.id)
    reason = text_of(choice.get("finish_reason")) or "stop"
    for _ in items.take(members(choice.get("message"))):
        pass
    for _ in items.end(item_status(reason)):
        pass
    told = response_body(result.id, wanted, result.timing.created_at, items.output, reason)
    return told | {"usage": usage_of(result)}


def item_status(reason: str) -> str:
    """Return the status of an item that was open when the model stopped for this reason."""
    return "incomplete" if reason in _INCOMPLETE else "completed"


def first_choice(body: Any) -> Mapping[str, Any]:
    """Return the first choice of a chat completion or of a chunk; an empty one if it has none."""
    choices = members(body).get("choices")
    return members(choices[0]) if isinstance(choices, list) and choices else {}


def members(value: Any) -> Mapping[str, Any]:
    """Return the members of an object; none of what is no object, whatever a server sends."""
    return value if isinstance(value, dict) else {}


def text_of(value: Any) -> str:
    """Return a text; an empty one for what is none."""
    return value if isinstance(value, str) else ""
