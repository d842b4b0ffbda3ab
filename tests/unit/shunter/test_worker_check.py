"""`shunter worker --check` against servers that show what routers place by, and that don't."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hostile_server import Behave, hang, hang_after_the_head
from model_server import Exchange, serving
from openai_cases import FLEET
from typer.testing import CliRunner

from shunter.cli import app

FLAGS = {
    "vllm": ("--enable-prompt-tokens-details", "--no-enable-prefix-caching", ""),
    "sglang": ("--enable-cache-report", "--disable-radix-cache", "--enable-metrics"),
    "llamacpp": ("--enable-cache-report", "--no-cache-prompt", "--metrics"),
}


class Server:
    """A server of some kind; ``cached`` is what it tells of cached tokens, None: nothing."""

    def __init__(self, kind: str, cached: int | None = 40, *, has_metrics: bool = True) -> None:
        self._kind, self._cached, self._has_metrics = kind, cached, has_metrics
        self._seen: set[str] = set()
        self.statuses: dict[str, int] = {}

    async def __call__(self, x: Exchange) -> None:
        if x.path == "/metrics":
            names = {"vllm": "num_requests_running", "sglang": "num_running_reqs"}
            line = f"{self._kind}:{names.get(self._kind, 'requests_processing')} 0\n"
            await x.json(line.encode(), 200 if self._has_metrics else 404)
        elif x.path == "/v1/models":
            await x.json({"data": [{"id": "m", "owned_by": self._kind}]})
        elif "priority" in x.body:
            await x.json({"error": {"message": "not enabled"}}, self.statuses.get("priority", 200))
        else:
            await x.json(self._answer(x.body), self.statuses.get("all", 200))

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        usage: dict[str, Any] = {"prompt_tokens": 41, "completion_tokens": 1}
        if self._cached is not None:
            known = str(body.get("messages", body.get("prompt"))) in self._seen
            usage["prompt_tokens_details"] = {"cached_tokens": self._cached * known}
        self._seen.add(str(body.get("messages", body.get("prompt"))))
        return {"choices": [{"index": 0, "message": {"content": "1"}}], "usage": usage}


async def check(server: Behave, tmp_path: Path, more: str = "") -> tuple[int, str]:
    """Return exit code and output of the command for a pool on this server."""
    async with serving(server) as listening:
        fleet = tmp_path / "fleet.yaml"
        backend = f'{{type: openai, {more} base_url: "{listening.base_url}"}}'
        fleet.write_text(f"{FLEET}    backend: {backend}\n")
        arguments = ["worker", "here", "--check", "--fleet", str(fleet)]
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    return result.exit_code, result.output


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
async def test_a_server_that_shows_all_is_well(kind: str, tmp_path: Path) -> None:
    code, output = await check(Server(kind), tmp_path)
    assert code == 0, output
    assert "40 of 41 tokens came from the cache" in output
    assert "missing" not in output


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
async def test_missing_flags_are_named(kind: str, tmp_path: Path) -> None:
    shows, caches, measures = FLAGS[kind]
    code, output = await check(Server(kind, None), tmp_path)
    assert (code, shows in output) == (1, True), output
    code, output = await check(Server(kind, 0), tmp_path)
    assert (code, caches in output) == (1, True), output
    code, output = await check(Server(kind, has_metrics=False), tmp_path)
    assert (code, measures in output) == (1, True), output


async def test_a_server_without_priorities_is_told(tmp_path: Path) -> None:
    server = Server("vllm")
    server.statuses["priority"] = 400
    code, output = await check(server, tmp_path, "priority: lower_first,")
    assert (code, "--scheduling-policy priority" in output) == (1, True), output
    server.statuses.clear()
    code, output = await check(server, tmp_path, "priority: lower_first,")
    assert (code, "a request may have a priority" in output) == (0, True), output


async def test_a_server_that_serves_nothing_fails(tmp_path: Path) -> None:
    server = Server("vllm")
    server.statuses["all"] = 404
    code, output = await check(server, tmp_path)
    assert (code, "fails" in output, "not_found" in output) == (1, True, True)


@pytest.mark.parametrize("behave", [hang, hang_after_the_head])
async def test_a_server_that_is_silent_fails(
    behave: Behave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.backends.openai.inspection.SCRAPE_S_MAX", 0.1)
    async with asyncio.timeout(10):
        code, output = await check(behave, tmp_path, "first_token_s_max: 0.1,")
    assert (code, "fails" in output, "timeout" in output) == (1, True, True), output


async def test_metrics_that_are_none_are_told(tmp_path: Path) -> None:
    async def behave(x: Exchange) -> None:
        if x.path == "/metrics":
            await x.json(b"vllm:num_requests_runninga{,\t=.=,}=1-\n")
        else:
            await Server("vllm")(x)

    code, output = await check(behave, tmp_path)
    assert (code, "can't be read" in output) == (1, True), output


def test_a_pool_without_a_server_has_its_models(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["worker", "premium-eu", "--check"])
    assert (result.exit_code, "ok" in result.output) == (0, True), result.output
