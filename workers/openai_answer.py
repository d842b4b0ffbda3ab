"""An answer put together again from the chunks that a model server streams."""

from typing import Any

from topics import Usage
from topics.request import TOKENS_MAX
from workers.backend import CallError

# Of a delta, the strings that name something; all others are pieces of text.
_NAMES = frozenset({"role", "type", "id", "name", "finish_reason"})
_IDENTITY = frozenset({"id", "created", "model", "system_fingerprint"})
_OF_A_CHUNK = frozenset({"object", "choices"})
DEPTH_MAX = 16
CHOICES_MAX = 128


def bad_answer(why: str) -> CallError:
    """Return the error of an answer that can't be used."""
    message = f"the server's answer can't be used: {why}"
    return CallError("bad_answer", message, retry="elsewhere", is_pool_fault=True)


class Assembled:
    """The answer of a chat or text completion, as it would have come without streaming."""

    def __init__(self, object_name: str) -> None:
        self._object = object_name
        self._is_chat = object_name == "chat.completion"
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self.chunks = 0
        """Chunks that held a piece of the reply."""

    def add(self, chunk: Any) -> bool:
        """Take a chunk in; return whether it holds a piece of the reply.

        Raises:
            CallError: it is no chunk.
        """
        if not isinstance(chunk, dict) or not isinstance(chunk.get("choices", []), list):
            raise bad_answer("a chunk of the stream is no object with choices")
        for name, value in chunk.items():
            # What identifies the answer comes first; what measures it, usage included, last.
            if name not in _OF_A_CHUNK and value is not None:
                self._head[name] = self._head.get(name, value) if name in _IDENTITY else value
        is_piece = False
        for choice in chunk.get("choices") or ():
            is_piece = self._add_choice(choice) or is_piece
        self.chunks += is_piece
        return is_piece

    def body(self) -> dict[str, Any]:
        """Return the answer.

        Raises:
            CallError: nothing of it came.
        """
        if not self._choices:
            raise bad_answer("the stream ended without a choice")
        if all(choice.get("finish_reason") is None for choice in self._choices.values()):
            raise CallError(
                "connection_lost",
                "the server's stream ended before its answer did",
                retry="elsewhere",
                is_pool_fault=True,
            )
        choices = [self._choices[index] for index in sorted(self._choices)]
        return {"object": self._object} | self._head | {"choices": choices}

    def _add_choice(self, choice: Any) -> bool:
        index = choice.get("index", 0) if isinstance(choice, dict) else None
        if not isinstance(index, int) or not 0 <= index < CHOICES_MAX:
            raise bad_answer("a choice of the stream has no index")
        empty: dict[str, Any] = {"index": index, "finish_reason": None}
        empty |= {"message": {"role": "assistant", "content": None}} if self._is_chat else {}
        into = self._choices.setdefault(index, empty)
        piece = {k: v for k, v in choice.items() if k not in {"index", "delta"}}
        delta = choice.get("delta")
        if self._is_chat and isinstance(delta, dict):
            piece["message"] = delta
        merge(into, piece)
        return bool(choice.get("text") or any(v for k, v in (delta or {}).items() if k != "role"))


def merge(into: dict[str, Any], piece: dict[str, Any], depth: int = 0) -> None:
    """Add a delta to what came before: text grows, list items are matched by their index.

    Raises:
        CallError: it nests too deep.
    """
    if depth > DEPTH_MAX:
        raise bad_answer(f"a chunk nests deeper than {DEPTH_MAX} levels")
    for name, value in piece.items():
        before = into.get(name)
        if before is None:
            into[name] = value
        elif isinstance(before, str) and isinstance(value, str):
            into[name] = value if name in _NAMES else before + value
        elif isinstance(before, dict) and isinstance(value, dict):
            merge(before, value, depth + 1)
        elif isinstance(before, list) and isinstance(value, list):
            _merge_items(before, value, depth + 1)
        elif value is not None:
            into[name] = value


def _merge_items(into: list[Any], items: list[Any], depth: int) -> None:
    for item in items:
        index = item.get("index") if isinstance(item, dict) else None
        same = None
        if index is not None:
            same = next((i for i in into if isinstance(i, dict) and i.get("index") == index), None)
        if same is None:
            into.append(item)
        else:
            merge(same, item, depth)


def usage_of(body: Any, *, input_tokens: int, output_tokens: int) -> Usage:
    """Return the usage that an answer tells, or what was counted where it does not.

    Args:
        body: of the answer.
        input_tokens: as counted here.
        output_tokens: likewise.
    """
    told = body.get("usage") if isinstance(body, dict) else None
    told = told if isinstance(told, dict) else {}
    details = told.get("prompt_tokens_details")
    cached = _tokens(details.get("cached_tokens")) if isinstance(details, dict) else None
    found_in, found_out = (_tokens(told.get(n)) for n in ("prompt_tokens", "completion_tokens"))
    return Usage(
        input_tokens if found_in is None else found_in,
        output_tokens if found_out is None else found_out,
        cached or 0,
    )


def _tokens(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= TOKENS_MAX else None
