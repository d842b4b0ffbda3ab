"""The gateway's run must fail on what it looks for: on made-up batches and figures."""

from types import SimpleNamespace
from typing import Any

import gateway_run
import orjson
import pytest

NAMES = ["batch 0 line 0", "batch 0 line 1"]


def line(name: str, said: str | None = None, usd: float = 0.5) -> dict[str, Any]:
    message = {"content": gateway_run.answer_to(name) if said is None else said}
    return {
        "custom_id": name,
        "response": {"body": {"choices": [{"message": message}]}},
        "shunter": {"cost": {"usd": usd}, "usage": {"output_tokens": 3}},
    }


async def judged(lines: list[dict[str, Any]], **made: Any) -> list[str]:
    async def ask(*_: Any) -> bytes:
        return b"\n".join(map(orjson.dumps, lines))

    scene: Any = SimpleNamespace(ask=ask, wrong=[])
    batch = {
        "status": "completed",
        "output_file_id": "file-1",
        "error_file_id": None,
        "request_counts": {},
        "shunter": {"cost_usd": 1.0},
        "usage": {"output_tokens": 6},
    }
    await gateway_run.judge(scene, 0, batch | made, NAMES)
    return list(scene.wrong)


async def test_a_batch_is_right_only_with_each_line_once_and_its_sums() -> None:
    right = [line(name) for name in NAMES]
    assert await judged(right) == []
    assert await judged(right[:1])
    assert await judged([*right, right[0]])
    assert await judged([right[0], line(NAMES[1], "half")])
    assert await judged([right[0], line(NAMES[1], usd=0.6)])
    assert await judged(right, usage={"output_tokens": 7})
    assert await judged(right, status="expired")


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, 0),
        ({"ran_on_in_calm_s_max": 1.1}, 1),
        ({"ran_on_within_a_fault_s_max": 7.1}, 1),
        ({"left_in_calm": 0}, 1),
        ({"wrong": ["a stream", "a batch"]}, 2),
    ],
)
def test_a_run_fails_where_something_is_wrong(change: dict[str, Any], missed: int) -> None:
    found = {
        "wrong": [],
        "ran_on_in_calm_s_max": 0.9,
        "left_in_calm": 5,
        "ran_on_within_a_fault_s_max": 6.9,
        "back_s_max": {"gateway": 0.5, "broker": 6.0},
    }
    assert len(gateway_run.beyond(found | change)) == missed
