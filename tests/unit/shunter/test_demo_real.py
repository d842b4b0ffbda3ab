"""The parts of a demo on real models that need neither models nor Kafka."""

from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from policies import compile_options, tag
from policies.scoring.constraints import refusals
from shunter.cli import app
from shunter.demo.llama_server import ServedModel, name_of
from shunter.demo.real_fleet import SMALL_POOL, TEXT_POOL, real_fleet
from shunter.demo.real_requests import answer_of, real_requests
from streams.config.declarations import load_fleet, load_policy
from topics import parse_request

GEMMA = ServedModel(
    "gemma-3-270m", "gemma-3-270m-q4_k_m.gguf", "http://127.0.0.1:1/v1", 268_000_000, 247_000_000
)


def test_each_request_may_be_served_by_one_pool_under_the_packaged_policy(tmp_path: Path):
    path = tmp_path / "fleet.yaml"
    path.write_text(real_fleet(GEMMA))
    options, policy = compile_options(load_fleet(path)), load_policy(None)
    places = {}
    for each in real_requests("gemma-3-270m"):
        parsed = parse_request(orjson.dumps(each), bytes_max=10_000)
        profile = tag(parsed, policy, received_at=1.0, now=1.0, ingest_partition=0).profile
        served = options.serving[parsed.model].options
        floor = policy.classes[profile.task].quality_min or 0.0
        assert refusals(profile, served, floor) == [None]
        places[each["id"]] = served[0].pool
    texts = {name for name, pool in places.items() if pool == TEXT_POOL}
    assert texts == {"chat-0", "chat-1", "chat-2", "text-0"}
    assert {places[name] for name in places.keys() - texts} == {SMALL_POOL}


@pytest.mark.parametrize(
    ("file", "precision"),
    [
        ("gemma-3-270m-q4_k_m.gguf", "int4"),
        ("Yard.IQ3_XS.gguf", "int4"),
        ("yard-Q8_0.gguf", "int8"),
        ("q-yard-f16.gguf", "int8"),  # by its weights, of 7.4 bits
    ],
)
def test_a_model_has_the_precision_that_its_file_is_named_for(
    tmp_path: Path, file: str, precision: str
):
    path = tmp_path / "fleet.yaml"
    path.write_text(real_fleet(ServedModel("yard", file, "http://x/v1", 268, 247)))
    (served,) = load_fleet(path).pools[TEXT_POOL].serves
    assert served.precision == precision


def test_a_model_of_the_user_is_called_as_its_file():
    assert name_of(Path("/models/My Model_1.5B.Q4.gguf")) == "my-model-1.5b.q4"
    assert name_of(None) == "gemma-3-270m"


def test_an_answer_tells_what_was_flagged_and_what_nobody_judged():
    result = {
        "flagged": True,
        "categories": {"hate": True, "violence": False, "illicit": None},
        "category_scores": {"hate": 0.9, "violence": 0.1, "illicit": None},
    }
    assert answer_of({"results": [result]}) == "hate 0.90; not judged: illicit"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--real", "--speed", "2"), "--real sends requests of its own"),
        (("--model", "/none/such.gguf"), "/none/such.gguf: there is no such file"),
    ],
)
def test_what_can_not_be_run_on_real_models_says_so(options: tuple[str, ...], told: str):
    done = CliRunner().invoke(app, ["demo", *options])
    assert done.exit_code != 0
    assert told in str(done.exception)
