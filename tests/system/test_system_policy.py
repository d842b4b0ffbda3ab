"""Policies and fleets applied and rolled back under load, on real Kafka and by the command."""

import asyncio
import copy
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from running_system import FLEET, System, chat, eventually
from typer.testing import CliRunner

from shunter.cli import app
from streams.config.declarations import load_policy

pytestmark = pytest.mark.kafka


async def shunter(system: System, *words: object) -> str:
    """Run a command in a thread, to its good end, and return what it printed."""
    where = ("--bootstrap-servers", system.bootstrap_servers, "--topic-prefix", system.prefix)
    done = await asyncio.to_thread(CliRunner().invoke, app, [*map(str, words), *where])
    assert done.exit_code == 0, f"{done.output} {done.exception}"
    return done.stdout


async def versions_of(system: System, request_id: str) -> tuple[str, str]:
    """Publish a request and return the policy and the fleet it was decided by."""
    await system.publish(chat(request_id))
    await system.wait_for_results([request_id])
    (step,) = [
        e
        for e in system.evidence
        # Held where the worker was not up yet, and released then.
        if e["request_id"] == request_id and e["step"] in ("placed", "released")
    ]
    return step["policy_version"], step["fleet_version"]


async def test_applied_under_load_and_rolled_back(kafka: str, prefix: str, tmp_path: Path) -> None:
    # With the deadlines of the packaged policy, however slow the machine.
    async with System(kafka, prefix, tmp_path, policy_speed=1.0) as system:
        own = tmp_path / "policy.yaml"
        declared: dict[str, Any] = yaml.safe_load(own.read_text())
        declared["classes"]["summarization"]["window_s"] = 1.0
        own.write_text(yaml.safe_dump(declared))
        system.start_all()
        first = await versions_of(system, "first")
        declared["classes"]["chat"]["target_chance"] = 0.8
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(declared))
        # A pool that nobody knew when the router started, and the cheapest there is.
        fleet: dict[str, Any] = copy.deepcopy(FLEET)
        fleet["pools"]["new-eu"] = fleet["pools"]["premium-eu"] | {"usd_per_hour": 0.01}
        (tmp_path / "bigger.yaml").write_bytes(orjson.dumps(fleet))
        names = [f"load-{n}" for n in range(200)]

        async def load() -> None:
            for name in names:
                task = {"task": "summarization"} if name.endswith("0") else {}
                await system.publish(chat(name, **task))
                await asyncio.sleep(0.005)

        loading = asyncio.create_task(load())
        told = await shunter(
            *(system, "policy", "apply", "--json", "--by", "a test"),
            *("--policy", tmp_path / "other.yaml", "--fleet", tmp_path / "bigger.yaml"),
        )
        applied = orjson.loads(told)
        system.env_of["new-eu"] = {"SHUNTER_FLEET": str(tmp_path / "bigger.yaml")}
        system.start("new-eu")
        await loading
        await system.wait_for_results(names)
        n = 0

        async def reaches_the_new_pool() -> bool:
            nonlocal n
            n += 1
            found = await versions_of(system, f"new-{n}")
            assert found == (applied["policy"], applied["fleet"])
            return bool(system.result(f"new-{n}")["placement"]["pool"] == "new-eu")

        await eventually(reaches_the_new_pool, "the new pool serves")
        await shunter(system, "audit", "replay", f"new-{n}")
        # Nothing but what the routers were started with stood before.
        rolled = orjson.loads(await shunter(system, "policy", "rollback", "--json"))
        assert (rolled["policy"], rolled["fleet"]) == (None, None)

        async def rolled_back() -> bool:
            nonlocal n
            n += 1
            return await versions_of(system, f"back-{n}") == first

        await eventually(rolled_back, "the old policy is back")
        again = orjson.loads(await shunter(system, "policy", "rollback", "--json"))
        assert (again["policy"], again["fleet"]) == (applied["policy"], applied["fleet"])
        history = orjson.loads(await shunter(system, "policy", "history", "--json"))
        assert [(c["action"], c["policy"]) for c in history] == [
            ("apply", applied["policy"]),
            ("rollback", None),
            ("rollback", applied["policy"]),
        ]
        assert history[0]["by"] == "a test"
        # A router that starts now knows it before its first decision.
        system.kill("router")
        system.start("router")
        assert await versions_of(system, "last") == (applied["policy"], applied["fleet"])
        assert {len(r) for r in system.results.values()} == {1}
        assert {r["status"] for (r,) in system.results.values()} == {"completed"}
        assert load_policy(own).version == first[0]
