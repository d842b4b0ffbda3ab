"""A stream of the Responses API's events, made of the chunks of a chat completion."""

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from gateway.api.answers import comment_of
from gateway.api.responses_output import (
    Event,
    OutputItems,
    first_choice,
    item_status,
    members,
    response_body,
    text_of,
    usage_of,
)
from gateway.api.translation import Wanted
from gateway.http.errors import ApiError
from topics import Result


class ResponseEvents:
    """Gives the events of one response, numbered, each with its name."""

    def __init__(self, request_id: str, wanted: Wanted, created: float) -> None:
        self._request_id = request_id
        self._wanted = wanted
        self._created = created
        self._items = OutputItems(request_id)
        self._reason: str | None = None
        self._sent = 0

    def events(self, chunk: Any) -> Iterator[bytes]:
        """Yield the events for a chunk of the server's."""
        yield from self._begin()
        choice = first_choice(chunk)
        self._reason = text_of(choice.get("finish_reason")) or self._reason
        yield from self._named(self._items.take(members(choice.get("delta"))))

    def whole(self, body: Any) -> Iterator[bytes]:
        """Yield the events for an answer that came in one piece."""
        yield from self._begin()
        yield from self._named(self._items.take(members(first_choice(body).get("message"))))

    def rest_of(self, body: Any) -> Iterator[bytes] | None:
        """Return the events for what is missing of an answer; None if that can't be told.

        It can be told of answers that are text alone.
        """
        message = members(first_choice(body).get("message"))
        plain = {name for name, value in message.items() if value} <= {"role", "content"}
        kinds = {item["type"] for item in self._items.output}
        text = text_of(message.get("content"))
        sent = "".join(
            part.get("text", "") for item in self._items.output for part in item.get("content", ())
        )
        if not plain or not kinds <= {"message"} or not text.startswith(sent):
            return None
        return self._named(self._items.take({"content": text[len(sent) :]}))

    def finish(self, body: Any) -> Iterator[bytes]:
        """Yield the end of each item that is open."""
        told = text_of(first_choice(body).get("finish_reason"))
        self._reason = told or self._reason or "stop"
        yield from self._named(self._items.end(item_status(self._reason)))

    def last(self, result: Result) -> list[bytes]:
        """Return what ends the stream: the comment, and the response as it came to be."""
        response = self._response() | {"usage": usage_of(result)}
        end = {"type": f"response.{response['status']}", "response": response}
        return [comment_of(result), *self._named([end])]

    def failure(self, error: ApiError) -> list[bytes]:
        """Return the event of an error; with its member ``error`` OpenAI's clients raise it."""
        body = error.body()
        told = {name: body["error"][name] for name in ("code", "message", "param")}
        return list(self._named([{"type": "error", **told, **body}]))

    def _response(self) -> dict[str, Any]:
        about = (self._request_id, self._wanted, self._created)
        return response_body(*about, self._items.output, self._reason)

    def _begin(self) -> Iterator[bytes]:
        if self._sent == 0:
            for name in ("created", "in_progress"):
                told = self._response() | {"output": []}
                yield from self._named([{"type": f"response.{name}", "response": told}])

    def _named(self, events: Iterable[Event]) -> Iterator[bytes]:
        for event in events:
            data = orjson.dumps(event | {"sequence_number": self._sent})
            self._sent += 1
            yield b"event: " + event["type"].encode() + b"\ndata: " + data + b"\n\n"
