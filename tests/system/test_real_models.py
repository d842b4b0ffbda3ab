"""`shunter demo --real`, whole: llama.cpp and the worker's own models behind Kafka."""

import importlib.util
import subprocess
import sys

import orjson
import pytest

from shunter.demo.real import NEEDED

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, NEEDED)), reason="needs the extra `real`"
    ),
]
ENDED_S_MAX = 240.0


@pytest.mark.slow
def test_real_models_answer_and_each_answer_tells_where_it_is_from(kafka: str):
    command = [sys.executable, "-m", "shunter", "demo", "--real", "--json"]
    done = subprocess.run(
        [*command, "--bootstrap-servers", kafka],
        capture_output=True,
        text=True,
        check=False,
        timeout=ENDED_S_MAX,
    )
    assert done.returncode == 0, done.stderr
    found = orjson.loads(done.stdout)
    assert found["problems"] == []
    answers = {each["id"]: each for each in found["answers"]}
    for name, each in answers.items():
        assert each["status"] == "completed"
        assert each["input_tokens"] > 0
        assert each["trace_id"] is None or len(each["trace_id"]) == 32
        is_text = name.startswith(("chat", "text"))
        assert each["pool"] == ("here-llama" if is_text else "here-cpu")
        if is_text:
            # Tokens of the server's own count, within what was asked for; times as they passed.
            assert 1 <= each["output_tokens"] <= 40
            assert 0 < each["ttft_s"] <= each["finish_s"]
            assert each["answer"]
    assert answers["embedding-0"]["answer"] == "a vector of 384 numbers"
    assert answers["moderation-0"]["answer"].startswith("nothing flagged; not judged: ")
    assert answers["moderation-1"]["answer"].startswith("self-harm ")
    assert "hate " in answers["moderation-2"]["answer"]
