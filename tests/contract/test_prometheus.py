"""A real Prometheus reads real processes under load, and each query of each dashboard has data."""

import asyncio
import contextlib
import json
import math
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ledger_cases import rows_of, until_the_ledger_follows
from model_server import Exchange, good, serving
from monitoring import DASHBOARDS, PROMETHEUS, RECORDED
from promql import filled
from running_system import FLEET, System, chat, eventually
from stream_cases import TRACEPARENT

from topics.embedded_broker.settings import free_port

pytestmark = pytest.mark.kafka

BINARY = shutil.which("prometheus")
INTERVAL = "30s"
WINDOW_S = 86_400


async def model(x: Exchange) -> None:
    """Answer well, but a request that asks for it with nonsense."""
    if isinstance(x.body, dict) and x.body.get("user") == "unlucky":
        await x.json({"nonsense": True})
    else:
        await good(x)


@contextlib.asynccontextmanager
async def prometheus(ports: dict[str, int], directory: Path) -> AsyncIterator[str]:
    """Run a Prometheus with the rules of the repository; yield its address."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    targets = [f"127.0.0.1:{port}" for port in ports.values()]
    config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    assert BINARY is not None
    address = f"127.0.0.1:{free_port()}"
    with (directory / "prometheus.txt").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220  starts at once
            [
                BINARY,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(90)


@contextlib.asynccontextmanager
async def ledger(system: System) -> AsyncIterator[str]:
    """Run a live ledger; yield where it is served."""
    port = free_port()
    command = ["ledger", "--follow", "--port", str(port), "--window", str(WINDOW_S)]
    process = subprocess.Popen(  # noqa: ASYNC220  starts at once
        [sys.executable, "-m", "shunter", *command, *where(system)]
    )
    try:
        yield f"http://127.0.0.1:{port}/ledger"
    finally:
        process.terminate()
        assert process.wait(90) == 0


def where(system: System) -> list[str]:
    """Return the flags that lead a command to this system."""
    servers, prefix = system.bootstrap_servers, system.prefix
    return ["--bootstrap-servers", servers, "--topic-prefix", prefix]


async def assert_the_ledgers_agree(system: System, live: str) -> None:
    """What the live one has of the load is what the evidence has."""
    command = ["ledger", "--json", "--window", str(WINDOW_S), *where(system)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "shunter", *command, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    exact = json.loads(told)["rows"]
    # Both lanes, and what was turned away.
    assert {(row["lane"], row["task"]) for row in exact} >= {
        ("interactive", "chat"),
        ("background", "summarization"),
    }

    async def agree() -> bool:
        return await rows_of(live) == exact

    await eventually(agree, f"the live ledger has {exact}")


async def ask(address: str, path: str, **parameters: str) -> list[Any]:
    def get() -> Any:
        url = f"{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310  of this machine
            return json.load(response)["data"]

    data = await asyncio.to_thread(get)
    return data["result"] if isinstance(data, dict) else data


async def value(address: str, query: str) -> float:
    """Return the one value of a query."""
    found = await ask(address, "query", query=query)
    return float(found[0]["value"][1]) if found else math.nan


async def load(system: System, seconds: float) -> list[str]:
    """Publish requests that go each way there is, for some seconds; return the ids of the fit."""
    ids: list[str] = []
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at:
        n = len(ids)
        headers = [("traceparent", TRACEPARENT)]
        await system.publish(chat(f"c{n}", constraints=_only("premium-eu")), headers=headers)
        # Its only lane is that for batches, so it waits for one.
        summary = chat(f"s{n}", task="summarization", constraints=_only("lpddr-us"))
        await system.publish(summary | {"completion_window": "30s"})
        # One in four fails there, and finds no other pool.
        tried = chat(f"f{n}", constraints=_only("flaky"))
        tried["body"] = tried["body"] | {"user": "unlucky" if n % 4 == 0 else "lucky"}
        await system.publish(tried)
        await system.publish(chat(f"n{n}", constraints={"regions": ["mars"]}))
        await system.publish(b"{", key=b"no request")
        ids += [f"c{n}", f"s{n}", f"f{n}", f"n{n}"]
        await asyncio.sleep(0.1)
    return ids


def _only(*pools: str) -> dict[str, Any]:
    return {"pools": list(pools)}


@pytest.mark.slow
async def test_each_query_of_each_dashboard_has_data_on_a_real_prometheus(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    if BINARY is None:
        pytest.skip("prometheus is missing; it comes with Debian's package prometheus")
    names = ["router", "premium-eu", "lpddr-us", "flaky"]
    ports = {name: free_port() for name in names}
    env_of = {name: {"SHUNTER_WEB_PORT": str(port)} for name, port in ports.items()}
    async with serving(model) as server:
        flaky = deepcopy(FLEET["pools"]["premium-eu"]) | {
            "usd_per_hour": 0.01,
            "lanes": ["direct"],
            "backend": {"type": "openai", "base_url": server.base_url},
        }
        moving = deepcopy(FLEET["pools"]["lpddr-us"])
        moving["backend"]["replies"] = "migrate"
        fleet = {"pools": FLEET["pools"] | {"flaky": flaky, "lpddr-us": moving}}
        async with System(kafka, prefix, tmp_path, fleet=fleet, env_of=env_of) as system:
            system.start_all()
            async with prometheus(ports, tmp_path) as address, ledger(system) as live:

                async def all_up() -> bool:
                    with contextlib.suppress(OSError):
                        workers = await value(address, "sum(shunter_pool_workers)")
                        return workers == await value(address, "sum(shunter_circuit_closed)") == 3
                    return False

                await eventually(all_up, "each worker is known", 30)
                await until_the_ledger_follows(live)
                ids = await load(system, 4.0)
                await system.wait_for_results(ids)
                await system.catch_up()
                await assert_same_counts(system, address)
                await assert_all_have_data(address)
                await assert_the_ledgers_agree(system, live)
                await assert_nothing_lags(address)


async def assert_same_counts(system: System, address: str) -> None:
    """Prometheus has come to the numbers that the evidence has."""
    ended = sum(len(results) for results in system.results.values())
    steps = len(system.evidence)

    async def is_there() -> bool:
        return (
            await value(address, "sum(shunter_requests_ended_total)") == ended
            and await value(address, "sum(shunter_steps_total)") == steps
        )

    await eventually(is_there, f"{ended} ended and {steps} steps are counted")
    answered = sum(e["got"]["cost_usd"] for e in system.evidence if e["step"] == "executed")
    # What servers refuse takes its time there, too.
    failed = sum(e["spent"]["nano_usd"] / 1e9 for e in system.evidence if e.get("spent"))
    assert failed > 0.0
    spent = answered + failed
    assert await value(address, "sum(shunter_cost_usd_total)") == pytest.approx(spent)


async def assert_nothing_lags(address: str) -> None:
    """Each member tells its lag, which ends at nothing: markers of transactions are none."""
    stages = ("router", "batcher", "canceller", "quality-watch", "quote-desk")
    pools = ("premium-eu", "lpddr-us", "flaky")
    wanted = dict.fromkeys([*stages, *(f"worker.{pool}" for pool in pools)], "0")
    lags: dict[str, str] = {}

    async def is_read() -> bool:
        found = await ask(
            address, "query", query="sum by (messaging_consumer_group_name) (shunter_lag)"
        )
        lags.clear()
        lags.update(
            (each["metric"]["messaging_consumer_group_name"].partition(".")[2], each["value"][1])
            for each in found
        )
        return lags == wanted

    try:
        await eventually(is_read, "nothing lags")
    except AssertionError as error:
        raise AssertionError(f"{error}, but {lags}") from None


async def assert_all_have_data(address: str) -> None:
    queries = [
        (f"{name}: {panel['title']}", filled(target["expr"], INTERVAL))
        for name, dashboard in DASHBOARDS.items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
        # No process counts the spans that its exporter gives up.
        if not re.search("shunter_spans_dropped|shunter_evidence_log", target["expr"])
    ]
    queries += [("a rule", rule["record"]) for rule in RECORDED]
    empty: list[tuple[str, str]] = []

    async def all_have_data() -> bool:
        empty[:] = [each for each in queries if not await has_data(address, each[1])]
        return not empty

    try:
        # What came last is a rate once it was read twice.
        await eventually(all_have_data, "every query has data")
    except AssertionError:
        raise AssertionError("\n".join(f"{where}: {query}" for where, query in empty)) from None
    found = await ask(
        address,
        "query_exemplars",
        query="gen_ai_server_request_duration_seconds_bucket",
        start=str(time.time() - 600),
        end=str(time.time() + 600),
    )
    traces = {e["labels"]["trace_id"] for series in found for e in series["exemplars"]}
    assert traces == {TRACEPARENT.decode().split("-")[1]}


async def has_data(address: str, query: str) -> bool:
    """Tell whether a query had a value that is a number at some time in the last minute."""
    now = time.time()
    span = {"start": str(now - 60), "end": str(now), "step": "1"}
    found = await ask(address, "query_range", query=query, **span)
    return any(not math.isnan(float(value)) for each in found for _, value in each["values"])
