"""Usage of an answer whose server tells that of each of its choices, and none of all of them."""

from typing import Any

_CACHED = "prompt_tokens_details", "cached_tokens"


class ChoiceUsages:
    """The usages that the chunks of one stream have told.

    OpenAI's API has one, of all choices, in a chunk without choices. llama.cpp tells each choice's
    own: of a chat in as many such chunks as there are choices, of texts in the chunk that ends one.
    """

    def __init__(self, choices_each: int) -> None:
        self._choices_each = choices_each
        self._of_ended: dict[int, dict[str, Any]] = {}
        self._apart: list[dict[str, Any]] = []

    def add(self, chunk: dict[str, Any]) -> None:
        """Take in a chunk."""
        usage, choices = chunk.get("usage"), chunk.get("choices") or ()
        if not isinstance(usage, dict):
            return
        if not choices:
            self._apart.append(usage)
        elif len(choices) == 1 and choices[0].get("finish_reason") is not None:
            self._of_ended[choices[0].get("index", 0)] = usage

    def of_all(self, choices: int) -> dict[str, Any] | None:
        """Return the usage of all choices, by how many there are; None: the newest told is it."""
        told = self._apart or list(self._of_ended.values())
        if choices < 2 or len(told) != choices:
            return None
        # Each prompt is told once for each of its choices, and was read once.
        read = sum(_tokens(each, "prompt_tokens") for each in told) // self._choices_each
        cached = sum(_tokens(each, *_CACHED) for each in told) // self._choices_each
        made = sum(_tokens(each, "completion_tokens") for each in told)
        return {
            "prompt_tokens": read,
            "completion_tokens": made,
            "total_tokens": read + made,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def _tokens(found: Any, *names: str) -> int:
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if type(found) is int and found >= 0 else 0
