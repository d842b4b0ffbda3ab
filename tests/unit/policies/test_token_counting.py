"""Tokens counted by a model's own tokenizer, here one that is made for the test."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from stream_cases import FLEET, MODEL, START, make_policy

from policies import parse_fleet, tag
from policies.config.schema import DeclarationError
from streams.config.token_counting import CHARACTERS_MAX, TokenCounter, load_token_counter
from topics import InferenceRequest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason="needs the extra `tokenizers`"
)


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    """A tokenizer that has a token for each word, and one before each text."""
    made = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": 1, "content": "<s>", "special": True, "single_word": False,
                "lstrip": False, "rstrip": False, "normalized": False,
            }
        ],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "<s>": 1}, "unk_token": "[UNK]"},
    }  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(made))
    return path


def counter(file: Path) -> TokenCounter:
    text = FLEET.replace(
        "context_tokens: 32768}", f"context_tokens: 32768, tokenizer_file: '{file}'}}"
    )
    return load_token_counter(parse_fleet(text, "fleet of the tests"))


def tagged(counting: TokenCounter, url: str, **body: Any) -> Any:
    request = InferenceRequest(id="r", url=url, model=MODEL, body={"model": MODEL} | body)
    found = tag(
        request,
        make_policy(),
        received_at=START,
        now=START,
        ingest_partition=0,
        count=counting.of(request),
    )
    return found.tags["context_length"]


def test_a_prompt_is_counted_exactly(tokenizer_file: Path) -> None:
    found = tagged(counter(tokenizer_file), "/v1/completions", prompt="which track is free")
    assert (found.value, found.confidence) == (5, 1.0)
    found = tagged(counter(tokenizer_file), "/v1/completions", prompt=["one two", "three"])
    assert found.value == 3 + 2


def test_messages_are_counted_and_their_template_estimated(tokenizer_file: Path) -> None:
    messages = [{"role": "user", "content": "which track"}, {"role": "user", "content": "is free"}]
    found = tagged(counter(tokenizer_file), "/v1/chat/completions", messages=messages)
    assert (found.value, found.confidence) == (4 + 2 * 4, 0.95)


def test_of_a_long_text_a_part_is_counted_for_all(tokenizer_file: Path) -> None:
    words = "ab " * CHARACTERS_MAX
    found = tagged(counter(tokenizer_file), "/v1/completions", prompt=words)
    assert found.value == pytest.approx(CHARACTERS_MAX, rel=0.001)
    found = tagged(counter(tokenizer_file), "/v1/completions", prompt=[words, "", words])
    assert found.value == pytest.approx(2 * CHARACTERS_MAX, rel=0.001)


def test_other_models_are_estimated(tokenizer_file: Path) -> None:
    request = InferenceRequest(id="r", model="another", body={})
    assert counter(tokenizer_file).of(request) is None


def test_a_tokenizer_that_can_not_be_read_is_told_at_start(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"models\.yard-8b\.tokenizer_file"):
        counter(tmp_path / "none.json")


def test_without_the_library_all_is_estimated(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    counting = counter(tokenizer_file)
    found = tagged(counting, "/v1/completions", prompt="which track is free")
    assert found.confidence == 0.6
    assert "install the extra" in caplog.text
