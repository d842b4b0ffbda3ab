"""Quotes of a running system, from the command to the charge."""

import asyncio
from pathlib import Path

import httpx2
import orjson
import pytest
from click.testing import Result
from gateway_cases import door
from running_system import System, chat
from typer.testing import CliRunner

from shunter.cli import app
from topics.records.money import NANO

pytestmark = pytest.mark.kafka

# What a busy machine takes to a pool counts in the chance of an SLO; these quotes are of deadlines.
PATIENT = {"ttft_ms": 60_000, "tpot_ms": 10_000}


async def test_a_file_is_quoted_taken_and_charged_no_more_than_was_quoted(
    kafka: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHUNTER_QUOTE_SECRET", "between the routers")
    monkeypatch.setenv("SHUNTER_BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("SHUNTER_TOPIC_PREFIX", prefix)
    file, taken = tmp_path / "requests.jsonl", tmp_path / "taken.jsonl"
    file.write_bytes(b"\n".join(orjson.dumps(chat(f"r{n}", slo=PATIENT)) for n in range(3)))
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

        async def submit(most: str) -> Result:
            file.write_bytes(orjson.dumps(chat(f"bound-{most}", slo=PATIENT)))
            words = ["submit", str(file), "--deadline", "10m", "--quote", most]
            return await asyncio.to_thread(CliRunner().invoke, app, words)

        dear = await submit("0")
        assert dear.exit_code == 1
        assert "nothing was published" in str(dear.exception)
        bound = await submit("1")
        assert bound.exit_code == 0, (bound.output, bound.exception)
        await system.wait_for_results(["bound-1"])
        cost = system.result("bound-1")["cost"]
        assert cost["usd"] <= cost["quoted_usd"]
        assert "bound-0" not in system.results


async def test_a_client_of_the_gateway_is_quoted_takes_an_offer_and_gets_it_once(
    kafka: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHUNTER_QUOTE_SECRET", "between the routers")
    asked = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "Which track?"}]}
    async with System(kafka, prefix, tmp_path) as system, door(system) as opened:
        system.start_all()
        await system.warm_up()
        key = {"Authorization": "Bearer any"}
        async with httpx2.AsyncClient(base_url=opened.url, headers=key, timeout=60) as http:

            async def post(**shunter: object) -> httpx2.Response:
                body = asked | {"shunter": {"slo": PATIENT} | shunter}
                return await http.post("/v1/chat/completions", json=body)

            quoted = await post(quote=True, deadline="10m")
            assert quoted.status_code == 200, (quoted.text, system.logs())
            menu = quoted.json()
            assert menu["object"] == "shunter.quote"
            offer = menu["offers"][0]
            assert (offer["within_s"], offer["tier"]) == (600.0, "auto")
            other = await http.post(
                "/v1/chat/completions",
                json=asked
                | {"max_tokens": 7, "shunter": {"slo": PATIENT, "quote_id": offer["quote_id"]}},
            )
            assert (other.status_code, other.json()["error"]["code"]) == (422, "quote_altered")
            taken, again = [await post(quote_id=offer["quote_id"]) for _ in range(2)]
            assert taken.status_code == again.status_code == 200, taken.text
            assert taken.json() == again.json()
            assert taken.headers["x-request-id"] == again.headers["x-request-id"] == menu["id"]
            paid, most = (float(taken.headers[f"x-shunter-{n}-usd"]) for n in ("cost", "quoted"))
            assert paid <= most == pytest.approx(offer["cost_usd"])
            await system.wait_for_results([menu["id"]])
            assert len(system.results[menu["id"]]) == 1
