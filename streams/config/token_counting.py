"""Token counts by the models' own tokenizers, if declared and the extra is installed."""

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from policies import Fleet
from policies.config.schema import DeclarationError, Problem
from topics import InferenceRequest

# Only this much text of a request is counted (some 10 ms); the rest is assumed equally dense.
CHARACTERS_MAX = 65_536

logger = logging.getLogger(__name__)


class TokenCounter:
    """Counts tokens by model, before the router tags a request."""

    def __init__(self, tokenizers: Mapping[str, Any]) -> None:
        self._tokenizers = tokenizers

    def of(self, request: InferenceRequest) -> Callable[[str], int] | None:
        """Return a counter of the request's tokens; None if there is none."""
        tokenizer = self._tokenizers.get(request.model)
        if tokenizer is None:
            return None
        # A chat template has special tokens of its own.
        is_chat = "messages" in request.body
        characters = tokens = 0

        def count(text: str) -> int:
            nonlocal characters, tokens
            counted = text[: CHARACTERS_MAX - characters]
            if counted or not text:
                found = len(tokenizer.encode(counted, add_special_tokens=not is_chat).ids)
                characters += len(counted)
                tokens += found
                if len(counted) == len(text):
                    return found
            return -(-len(text) * tokens // characters)

        return count


def load_token_counter(fleet: Fleet) -> TokenCounter:
    """Return a counter with the tokenizers that the fleet's models declare.

    Raises:
        DeclarationError: a tokenizer is declared and can't be read.
    """
    declared = {name: m.tokenizer_file for name, m in fleet.models.items() if m.tokenizer_file}
    if not declared:
        return TokenCounter({})
    try:
        library = importlib.import_module("tokenizers")
    except ImportError:
        logger.warning(
            "tokens of %s are estimated: install the extra `tokenizers` to count them",
            ", ".join(declared),
        )
        return TokenCounter({})
    found = {}
    for name, file in declared.items():
        try:
            tokenizer = library.Tokenizer.from_file(file)
        except Exception as error:  # the library's own type is not exported
            field = f"models.{name}.tokenizer_file"
            problem = Problem("fleet", field, file, f"can't be read: {error}")
            raise DeclarationError([problem]) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        found[name] = tokenizer
    return TokenCounter(found)
