"""Quotes of a running system, from the command to the charge."""

import asyncio
from pathlib import Path

import orjson
import pytest
from running_system import System, chat
from typer.testing import CliRunner

from shunter.cli import app
from topics.records.money import NANO

pytestmark = pytest.mark.kafka


async def test_a_file_is_quoted_taken_and_charged_no_more_than_was_quoted(
    kafka: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHUNTER_QUOTE_SECRET", "between the routers")
    monkeypatch.setenv("SHUNTER_BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("SHUNTER_TOPIC_PREFIX", prefix)
    file, taken = tmp_path / "requests.jsonl", tmp_path / "taken.jsonl"
    file.write_bytes(b"\n".join(orjson.dumps(chat(f"r{n}")) for n in range(3)))
    async with System(kafka, prefix, tmp_path) as system:
        system.start_all()
        await system.warm_up()
        arguments = ["quote", str(file), "--by", "10m", "--take", "1", "--output", str(taken)]
        found = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--json"])
        assert found.exit_code == 0, (found.output, found.exception, system.logs())
        menu = orjson.loads(found.stdout)
        requests = [orjson.loads(line) for line in taken.read_bytes().splitlines()]
        assert {r["id"]: r["quote_id"] for r in requests} == menu[0]["quote_ids"]
        for each in requests:
            await system.publish(each)
        ids = [f"r{n}" for n in range(3)]
        await system.wait_for_results(ids)
        charged = 0.0
        for name in ids:
            result = system.result(name)
            assert result["status"] == "completed"
            assert result["cost"]["usd"] <= result["cost"]["quoted_usd"]
            charged += result["cost"]["usd"]
            await system.wait_for_steps(name, "placed", "executed")
            (end,) = [
                e for e in system.evidence if (e["request_id"], e["step"]) == (name, "executed")
            ]
            paid = end["charge"]
            assert paid["charged_nano_usd"] == min(paid["quoted_nano_usd"], paid["cost_nano_usd"])
            assert paid["charged_nano_usd"] == round(result["cost"]["usd"] * NANO)
        assert charged <= menu[0]["cost_usd"] + 1e-12
