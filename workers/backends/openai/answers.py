"""Assemble an answer from the chunks that a model server streams."""

from typing import Any

from policies.request_tokens import CHARACTERS_PER_TOKEN
from topics import Usage
from topics.records.request import TOKENS_MAX
from workers.backends.base import CallError
from workers.backends.openai.choice_usage import ChoiceUsages

# Of a delta, the strings that name something; all others are pieces of text.
_NAMES = frozenset({"role", "type", "id", "name", "finish_reason"})
_IDENTITY = frozenset({"id", "created", "model", "system_fingerprint"})
_OF_A_CHUNK = frozenset({"object", "choices"})
DEPTH_MAX = 16
# Choices that a server may send where fewer were asked for.
CHOICES_MAX = 128


def bad_answer(why: str) -> CallError:
    """Return the error for an unusable answer."""
    message = f"the server's answer can't be used: {why}"
    return CallError("bad_answer", message, retry="elsewhere", is_pool_fault=True)


class Assembled:
    """The answer of a chat or text completion in its form without streaming."""

    def __init__(self, object_name: str, choices_each: int = 1, prompts: int = 1) -> None:
        """Begin an answer that has nothing yet.

        Args:
            object_name: what it is called.
            choices_each: choices that are asked for of each prompt.
            prompts: so many.
        """
        self._choices_max = max(CHOICES_MAX, choices_each * prompts)
        self._object = object_name
        self._is_chat = object_name == "chat.completion"
        self._usages = ChoiceUsages(choices_each)
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._indexed: dict[int, tuple[list[Any], dict[int, dict[str, Any]]]] = {}
        """By its `id`, a list of the answer (kept, so that no other has that) and its items."""
        self.chunks = 0
        """Chunks that held a piece of the reply."""
        self.is_told_whole = False
        """Whether the server has said that nothing more comes."""

    def add(self, chunk: Any) -> bool:
        """Add a chunk; return whether it holds a piece of the reply.

        Raises:
            CallError: it is not a chunk.
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
        self._usages.add(chunk)
        self.chunks += is_piece
        return is_piece

    def body(self) -> dict[str, Any]:
        """Return the answer.

        Raises:
            CallError: no chunk arrived, or not all of an answer.
        """
        if not self._choices:
            raise bad_answer("the stream ended without a choice")
        going_on = [each.get("finish_reason") is None for each in self._choices.values()]
        # LiteLLM says of one choice alone that it ended, and then that all did.
        if all(going_on) or (any(going_on) and not self.is_told_whole):
            raise CallError(
                "connection_lost",
                "the server's stream ended before its answer did",
                retry="elsewhere",
                is_pool_fault=True,
            )
        choices = [self._choices[index] for index in sorted(self._choices)]
        told = self._usages.of_all(len(choices))
        head = self._head if told is None else self._head | {"usage": told}
        return {"object": self._object} | head | {"choices": choices}

    def _add_choice(self, choice: Any) -> bool:
        index = choice.get("index", 0) if isinstance(choice, dict) else None
        if type(index) is not int or not 0 <= index < self._choices_max:
            raise bad_answer("a choice of the stream has no index")
        delta = choice.get("delta")
        if delta is not None and not isinstance(delta, dict):
            raise bad_answer("the delta of a choice is no object")
        empty: dict[str, Any] = {"index": index, "finish_reason": None}
        empty |= {"message": {"role": "assistant", "content": None}} if self._is_chat else {}
        into = self._choices.setdefault(index, empty)
        piece = {k: v for k, v in choice.items() if k not in {"index", "delta"}}
        if self._is_chat and delta is not None:
            piece["message"] = delta
        self._merge(into, piece, 0)
        return bool(choice.get("text") or any(v for k, v in (delta or {}).items() if k != "role"))

    def _merge(self, into: dict[str, Any], piece: dict[str, Any], depth: int) -> None:
        """Merge a delta: text is appended, list items are matched by their index.

        Raises:
            CallError: it is nested too deep.
        """
        if depth > DEPTH_MAX:
            raise bad_answer(f"a chunk nests deeper than {DEPTH_MAX} levels")
        for name, value in piece.items():
            before = into.get(name)
            if before is None:
                into[name] = value
            elif isinstance(before, str) and isinstance(value, str) and name not in _NAMES:
                # A string that nothing else refers to grows in place. To copy what there is for
                # each piece took up to 40 s for 8 MiB in pieces of 60 characters; this, 0.2 s.
                into[name] = None
                before += value
                into[name] = before
            elif isinstance(before, dict) and isinstance(value, dict):
                self._merge(before, value, depth + 1)
            elif isinstance(before, list) and isinstance(value, list):
                self._merge_items(before, value, depth + 1)
            elif value is not None:
                into[name] = value

    def _merge_items(self, into: list[Any], items: list[Any], depth: int) -> None:
        for item in items:
            index = _index_of(item)
            known = {} if index is None else self._items_of(into)
            if index in known:
                self._merge(known[index], item, depth)
                continue
            into.append(item)
            if index is not None:
                known[index] = item

    def _items_of(self, items: list[Any]) -> dict[int, dict[str, Any]]:
        """Return the items that have an index, by index; a search for each would be too slow."""
        if id(items) not in self._indexed:
            known: dict[int, dict[str, Any]] = {}
            for item in items:
                if (index := _index_of(item)) is not None:
                    known.setdefault(index, item)
            self._indexed[id(items)] = (items, known)
        return self._indexed[id(items)][1]


def _index_of(item: Any) -> int | None:
    index = item.get("index") if isinstance(item, dict) else None
    return index if type(index) is int else None


def tokens_by_text(body: dict[str, Any]) -> int:
    """Return an answer's approximate number of tokens, by the length of the text of its choices."""
    characters = 0
    for choice in _objects(body.get("choices")):
        message = choice.get("message")
        said = message if isinstance(message, dict) else {"text": choice.get("text")}
        functions = _objects([call.get("function") for call in _objects(said.get("tool_calls"))])
        texts = [value for name, value in said.items() if name not in _NAMES]
        texts += [function.get("arguments") for function in functions]
        characters += sum(len(text) for text in texts if isinstance(text, str))
    return -(-characters // CHARACTERS_PER_TOKEN)


def _objects(found: Any) -> list[dict[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def usage_of(body: Any, *, input_tokens: int, output_tokens: int) -> Usage:
    """Return the usage that an answer reports, otherwise the counted one.

    Args:
        body: the answer's body.
        input_tokens: as counted here.
        output_tokens: as counted here.
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
