"""Moderation on the processor: OpenAI's categories by one linear head each on sentence vectors.

A head is judged by prompts that it was not fitted on (``python -m benchmarks.moderation``). What
such a small model can't tell apart is not judged, and the answer says so: null, never false.
"""

import math
from importlib.resources import files
from typing import Any

import orjson

from policies.config.fleet import CPUBackendConfig as Declared
from workers.backends.cpu.models import FLAGGED_FROM, Embedder, OffensiveLanguage, needed

HEADS_FILE = "moderation_heads.json"
WINDOW_TOKENS = 256
"""As many as the sentence model was trained on; a longer text is judged window by window."""
OFFENSIVE = "offensive"
"""A category of our own beside OpenAI's, of the other model."""


class Moderator:
    """Judges texts by the categories of OpenAI's moderations, and by ``offensive``.

    The heads were fitted on English prompts labelled by OpenAI; `HEADS_FILE` has what was measured.

    Args:
        where: the backend in the fleet file, for errors.
        embedder: the packaged sentence model where it is loaded already; None loads it.

    Raises:
        BackendSettingError: the extra is not installed.
    """

    def __init__(self, where: str, embedder: Embedder | None = None) -> None:
        self._embedder = embedder or Embedder(Declared(type="cpu"), where, WINDOW_TOKENS)
        self._offensive = OffensiveLanguage(where)
        array = needed("numpy", where).array
        self._heads = {
            name: None if head["weights"] is None else (array(head["weights"]), head["bias"])
            for name, head in heads().items()
        }

    def judge(self, texts: list[str]) -> tuple[list[dict[str, Any]], int]:
        """Return a result for each text in OpenAI's form, and the tokens of all.

        A score is a logistic one, scaled so that a text is flagged from 0.5 on; it is no
        probability. Categories that are not judged have null, and apply to no type of input.
        """
        offensive = self._offensive.scores(texts)
        found, tokens = [], 0
        for text, rude in zip(texts, offensive, strict=True):
            vectors, count = self._embedder.windows(text, WINDOW_TOKENS)
            tokens += count
            scores = self._scores(vectors) | {OFFENSIVE: rude}
            found.append(_result(scores))
        return found, tokens

    def _scores(self, vectors: list[Any]) -> dict[str, float | None]:
        scores: dict[str, float | None] = {}
        for name, head in self._heads.items():
            if head is None:
                scores[name] = None
                continue
            weights, bias = head
            # The worst window decides: a threat stays one in the middle of a long text.
            logit = max(float(vector @ weights) for vector in vectors) + bias
            scores[name] = 1.0 / (1.0 + math.exp(-logit))
        return scores


def heads() -> dict[str, dict[str, Any]]:
    """Return the packaged heads by OpenAI's names; without ``weights`` a category isn't judged."""
    packed = files("workers.backends.cpu").joinpath(HEADS_FILE).read_bytes()
    found: dict[str, dict[str, Any]] = orjson.loads(packed)["categories"]
    return found


def _result(scores: dict[str, float | None]) -> dict[str, Any]:
    flags = {name: None if s is None else s >= FLAGGED_FROM for name, s in scores.items()}
    return {
        "flagged": any(flags.values()),
        "categories": flags,
        "category_scores": scores,
        "category_applied_input_types": {
            name: [] if score is None else ["text"] for name, score in scores.items()
        },
    }
