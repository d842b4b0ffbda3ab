"""The CPU backend with its real models, from the packages of the extra."""

import base64
import struct
from pathlib import Path

import pytest
from cpu_cases import FLEET, call, needs_extra
from openai.types.moderation import Categories

from policies import compile_options, parse_fleet
from policies.config.fleet import CPUBackendConfig as Declared
from streams.engine.clock import SystemClock
from workers.backends.base import BackendSettingError, Call, CallError
from workers.backends.cpu.backend import CPUBackend

OPTIONS = compile_options(parse_fleet(FLEET, "fleet of the tests")).by_pool["here"]


@pytest.fixture(scope="module")
def backend() -> CPUBackend:
    return CPUBackend(Declared(type="cpu", threads=2), OPTIONS, SystemClock())


def likeness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@needs_extra
async def test_embeddings_mean_something(backend: CPUBackend) -> None:
    texts = ["The engine sorts wagons.", "A locomotive shunts rail cars.", "Cut the onions."]
    outcome = await backend.execute(call("embeddings", texts))
    body = outcome.response.body
    near, far = (row["embedding"] for row in body["data"][1:])
    first = body["data"][0]["embedding"]
    assert len(first) == 384
    assert likeness(first, first) == pytest.approx(1.0, abs=1e-5)
    assert likeness(first, near) > likeness(first, far) + 0.2
    assert [row["index"] for row in body["data"]] == [0, 1, 2]
    # [CLS] the engine sorts wagons . [SEP]; `shunts` is of two tokens.
    assert outcome.usage.input_tokens == body["usage"]["prompt_tokens"] == 7 + 9 + 6
    assert outcome.device_s > 0
    # No neighbour changes a vector.
    alone = await backend.execute(call("embeddings", texts[0]))
    assert alone.response.body["data"][0]["embedding"] == first


@needs_extra
async def test_an_embedding_may_be_base64(backend: CPUBackend) -> None:
    plain = await backend.execute(call("embeddings", "wagon"))
    packed = await backend.execute(call("embeddings", "wagon", encoding_format="base64"))
    data = base64.b64decode(packed.response.body["data"][0]["embedding"])
    found = struct.unpack("<384f", data)
    assert list(found) == pytest.approx(plain.response.body["data"][0]["embedding"])


@needs_extra
async def test_moderations_have_openais_categories_and_tell_which_nobody_judged(
    backend: CPUBackend,
) -> None:
    texts = [
        "Have a nice day.",
        "You stupid idiot.",
        "I want to hurt myself and see no reason to go on.",
        "All of these immigrants make me sick and should be shot.",
    ]
    outcome = await backend.execute(call("moderations", texts))
    nice, rude, sad, hateful = outcome.response.body["results"]
    assert [r["flagged"] for r in (nice, rude, sad, hateful)] == [False, True, True, True]
    assert (nice["categories"]["offensive"], rude["categories"]["offensive"]) == (False, True)
    assert sad["categories"]["self-harm"] is True
    assert (hateful["categories"]["hate"], hateful["categories"]["violence"]) == (True, True)
    fields = Categories.model_fields.items()
    known = {field.alias or name for name, field in fields} | {"offensive"}
    for result in (nice, rude, sad, hateful):
        scores, applied = result["category_scores"], result["category_applied_input_types"]
        assert scores.keys() == applied.keys() == result["categories"].keys() == known
        for name, flag in result["categories"].items():
            # What is not judged is null, so that nobody takes it for a no.
            assert (flag, applied[name]) == (
                (None, []) if scores[name] is None else (scores[name] >= 0.5, ["text"])
            )
    assert nice["categories"]["harassment"] is nice["categories"]["illicit"] is None
    # [CLS] have a nice day . [SEP], and so on: tokens as the model reads them.
    assert outcome.usage.input_tokens == 7 + 6 + 15 + 14


@needs_extra
async def test_a_long_text_is_judged_by_its_worst_stretch(backend: CPUBackend) -> None:
    sorting = "The wagons are sorted by where they go. " * 40
    long = sorting + "I want to hurt myself and see no reason to go on. " * 40 + sorting
    outcome = await backend.execute(call("moderations", [sorting, long]))
    calm, sad = outcome.response.body["results"]
    assert (calm["categories"]["self-harm"], sad["categories"]["self-harm"]) == (False, True)


@needs_extra
@pytest.mark.parametrize(
    ("made", "code", "retry"),
    [
        (call("embeddings", []), "request_refused", "never"),
        (call("embeddings", ""), "request_refused", "never"),
        (call("embeddings", [1, 2]), "request_refused", "never"),
        (call("embeddings", "x", dimensions=8), "request_refused", "never"),
        (call("embeddings", "x", encoding_format="hex"), "request_refused", "never"),
        (call("embeddings", "wagon " * 300), "context_too_long", "elsewhere"),
        (call("moderations", [{"type": "image_url"}]), "request_refused", "never"),
    ],
)
async def test_what_can_not_be_computed_says_why(
    backend: CPUBackend, made: Call, code: str, retry: str
) -> None:
    with pytest.raises(CallError) as caught:
        await backend.execute(made)
    assert (caught.value.code, caught.value.retry) == (code, retry)
    assert backend.load().variants["minilm-int8"].running == 0


@needs_extra
@pytest.mark.parametrize(
    ("made", "param"),
    [
        (call("embeddings", ["a", ""]), "input"),
        (call("embeddings", [1, 2]), "input"),
        (call("embeddings", "x", dimensions=8), "dimensions"),
        (call("embeddings", "x", encoding_format="hex"), "encoding_format"),
        (call("moderations", [{"type": "image_url"}]), "input"),
    ],
)
async def test_a_refusal_is_told_to_the_client_as_a_server_tells_it(
    backend: CPUBackend, made: Call, param: str
) -> None:
    with pytest.raises(CallError) as caught:
        await backend.execute(made)
    refusal = caught.value.response
    assert refusal is not None
    error = refusal.body["error"]
    assert (refusal.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["message"]) == (param, caught.value.message)


@needs_extra
def test_a_model_that_can_not_be_read_is_told_at_start(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    declared = Declared(
        type="cpu",
        model_file=str(tmp_path / "model.onnx"),
        tokenizer_file=str(tmp_path / "tokenizer.json"),
    )
    with pytest.raises(BackendSettingError, match=r"pools\.here\.backend: .*model\.onnx"):
        CPUBackend(declared, OPTIONS, SystemClock())


def test_without_the_extra_the_command_to_install_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(BackendSettingError, match=r"shunter\[cpu\]"):
        CPUBackend(Declared(type="cpu"), OPTIONS, SystemClock())
