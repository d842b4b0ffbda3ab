"""A server that answers at a known pace is measured, and its device declared by that."""

import asyncio
import threading
from pathlib import Path

import pytest
from model_server import Behaviour, Exchange, ModelServer
from typer.testing import CliRunner, Result

from policies.config.rooflines import roofline_of
from policies.config.serving import Serving
from policies.hardware.closed_loop import closed_loop
from shunter.cli import app
from shunter.hardware.calibration import Case, at_bound, calibrate
from shunter.hardware.devices import load_catalogue
from shunter.hardware.sweep import Point, SweepPoint

CATALOGUE = load_catalogue()
CASE = Case(CATALOGUE.devices["h100"], CATALOGUE.models["llama-3.1-8b"], "fp8")
GRID = [SweepPoint(tokens, 32, count) for count in (1, 4, 16) for tokens in (64, 512, 2048)]
# A token of a prompt and of a reply take the server below so long.
PROMPT_S, REPLY_S = 0.0004, 0.004


def points(serving: Serving) -> list[Point]:
    device = CASE.device.model_copy(update={"serving": serving})
    roofline, found = roofline_of(device, CASE.model, CASE.precision), []
    for asked in GRID:
        lengths = ((asked.input_tokens, 32),) * max(4, 2 * asked.concurrency)
        means = closed_loop(roofline, serving.first_token_ms / 1000, lengths, asked.concurrency)
        found.append(Point(asked, lengths, means.ttft_s, means.tpot_s))
    return found


def test_what_made_the_points_is_found_again() -> None:
    declared = CASE.device.serving
    assert declared is not None
    true = declared.model_copy(
        update={"compute_share": 0.3, "layer_us": 90.0, "first_token_ms": 80.0}
    )
    found = calibrate(CASE, points(true), "here")
    assert max(found.errors()) < 0.02
    assert found.device.serving is not None
    assert found.device.serving.compute_share == pytest.approx(0.3, rel=0.1)
    assert found.device.serving.first_token_ms == pytest.approx(80.0, rel=0.1)
    assert (found.device.status, found.device.measured) == ("measured", "here")
    assert sum(each.is_held_out for each in found.points) == 3
    assert at_bound(CASE.device, found.device) == []
    with pytest.raises(ValueError, match="too few"):
        calibrate(CASE, points(true)[:5], "here")


def test_a_device_that_is_faster_than_declared_is_told() -> None:
    declared = CASE.device.serving
    assert declared is not None
    slow = CASE.device.model_copy(update={"memory_bandwidth_tb_s": 0.5})
    found = calibrate(Case(slow, CASE.model, CASE.precision), points(declared), "here")
    assert "memory is faster than 0.5 TB/s" in "".join(at_bound(slow, found.device))


async def paced(exchange: Exchange) -> None:
    words = len(exchange.body["prompt"].split())
    reply = exchange.body["max_tokens"]
    await asyncio.sleep(words * PROMPT_S)
    await exchange.events()
    for _ in range(reply):
        await exchange.event(exchange.piece("x "))
        await asyncio.sleep(REPLY_S)
    await exchange.event({"choices": [], "usage": {
        "prompt_tokens": words, "completion_tokens": reply, "total_tokens": words + reply,
    }})  # fmt: skip
    await exchange.end()


def typed(*words: str) -> Result:
    return CliRunner().invoke(app, ["hardware", "calibrate", *words])


class Beside:
    """A model server in a thread, as the command has a loop of its own."""

    def __init__(self, behave: Behaviour = paced) -> None:
        self._behave = behave
        self.url, self._ready, self._loop = "", threading.Event(), asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    async def _run(self) -> None:
        async with ModelServer(self._behave) as server:
            self.url = server.base_url
            self._ready.set()
            await self._over.wait()

    def __enter__(self) -> str:
        self._thread.start()
        assert self._ready.wait(30)
        return self.url

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(5)
        self._loop.close()


def test_a_server_is_measured_and_its_device_written(tmp_path: Path) -> None:
    file = tmp_path / "device.yaml"
    asked = ["--device", "h100", "--model", "llama-3.1-8b", "--precision", "fp8"]
    sizes = ["--input-tokens", "50,100,200", "--concurrency", "1,2", "--output-tokens", "4"]
    with Beside() as url:
        result = typed(url, *asked, *sizes, "--output", str(file))
        assert result.exit_code == 0, result.output
    device = load_catalogue(file).devices["h100"]
    assert device.status == "measured"
    assert "6 points of llama-3.1-8b fp8 at 127.0.0.1" in device.measured
    # This server computes prompts side by side, which no device does; one client says what it is.
    case = roofline_of(device, CASE.model, "fp8")
    assert device.serving is not None
    alone_s = device.serving.first_token_ms / 1000 + case.prefill_s(200)
    assert alone_s == pytest.approx(200 * PROMPT_S, rel=0.5)
    assert "held out" in result.output


def test_a_disk_without_room_is_one_message() -> None:
    asked = ["--device", "h100", "--model", "llama-3.1-8b", "--precision", "fp8"]
    sizes = ["--input-tokens", "50,100,200", "--concurrency", "1,2", "--output-tokens", "4"]
    with Beside() as url:
        result = typed(url, *asked, *sizes, "--output", "/dev/full")
    assert str(result.exception) == "/dev/full: can't be written: No space left on device"


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_server_of_chats_alone_is_measured(tmp_path: Path, is_strict: bool) -> None:
    async def chats(exchange: Exchange) -> None:
        body = exchange.body
        if exchange.path.endswith("/v1/completions"):
            await exchange.json({"error": {"message": "no such URL"}}, 404)
        elif is_strict and "ignore_eos" in body:
            await exchange.json({"error": {"message": "unknown parameter ignore_eos"}}, 400)
        else:
            assert ("ignore_eos" in body) != is_strict
            body["prompt"] = body["messages"][0]["content"]
            await paced(exchange)

    asked = ["--device", "h100", "--model", "llama-3.1-8b", "--precision", "fp8"]
    sizes = ["--input-tokens", "10,20,40", "--concurrency", "1,2", "--output-tokens", "2"]
    file = tmp_path / "device.yaml"
    with Beside(chats) as url:
        result = typed(url, *asked, *sizes, "--output", str(file))
    assert result.exit_code == 0, result.output
    assert load_catalogue(file).devices["h100"].status == "measured"


def test_a_server_that_takes_no_form_is_told_in_its_words(tmp_path: Path) -> None:
    async def refuses(exchange: Exchange) -> None:
        await exchange.json({"error": {"message": "no model of that name"}}, 404)

    asked = ["--device", "h100", "--model", "llama-3.1-8b", "--precision", "fp8"]
    with Beside(refuses) as url:
        result = typed(url, *asked, "--output", str(tmp_path / "device.yaml"))
    assert "no model of that name" in str(result.exception) + result.output


def test_connections_that_the_server_has_closed_end_nothing(tmp_path: Path) -> None:
    served: set[asyncio.StreamWriter] = set()

    async def once_a_connection(exchange: Exchange) -> None:
        if exchange.writer in served:
            exchange.writer.transport.abort()
            return
        served.add(exchange.writer)
        await paced(exchange)

    asked = ["--device", "h100", "--model", "llama-3.1-8b", "--precision", "fp8"]
    sizes = ["--input-tokens", "10,20,40", "--concurrency", "1,2", "--output-tokens", "2"]
    with Beside(once_a_connection) as url:
        result = typed(url, *asked, *sizes, "--output", str(tmp_path / "device.yaml"))
    assert result.exit_code == 0, result.output


def test_a_model_of_ones_own_is_written_with_its_device(tmp_path: Path) -> None:
    own, file = tmp_path / "own.yaml", tmp_path / "device.yaml"
    own.write_text(
        "models: {mine: {parameters_b: 8, layers: 32, kv_heads: 8, head_dim: 128,"
        " context_tokens: 8192, source: our own}}"
    )
    sizes = ["--input-tokens", "10,20,40", "--concurrency", "1,2", "--output-tokens", "2"]
    asked = ["--device", "h100", "--model", "mine", "--precision", "fp8", "--catalogue", str(own)]
    with Beside() as url:
        result = typed(url, *asked, *sizes, "--output", str(file))
    assert result.exit_code == 0, result.output
    found = load_catalogue(file)
    assert found.models["mine"] == load_catalogue(own).models["mine"]
    # What is packaged stays there, to be corrected there.
    assert "llama-3.1-8b" not in file.read_text()
    # The file alone is enough for a prediction, as for a fleet.
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "device,model,precision,tensor_parallel,input_tokens,output_tokens,concurrency\n"
        "h100,mine,fp8,1,64,8,2\n"
    )
    asked = ["hardware", "predict", str(rows), "--catalogue", str(file), "--json"]
    assert "error" not in CliRunner().invoke(app, asked).output


def test_a_server_that_still_loads_is_told_as_such(tmp_path: Path) -> None:
    async def loads(exchange: Exchange) -> None:
        await exchange.json({"error": {"code": 503, "message": "Loading model"}}, 503)

    asked = ["--device", "h100", "--model", "llama-3.1-8b", "--precision", "fp8"]
    with Beside(loads) as url:
        result = typed(url, *asked, "--output", str(tmp_path / "device.yaml"))
    told = str(result.exception) + result.output
    assert "503" in told
    assert "Loading model" in told
    assert "once it has loaded" in told


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"--device": "h1000"}, "did you mean"),
        ({"--model": "none"}, "--model"),
        ({"--precision": "fp7"}, "--precision"),
        ({"--concurrency": "0"}, "--concurrency"),
        ({"url": "ftp://x"}, "base_url"),
        ({"url": "http://127.0.0.1:1/v1"}, "reached"),
    ],
)
def test_what_can_not_be_measured_is_said(
    changed: dict[str, str], says: str, tmp_path: Path
) -> None:
    given = {
        "url": "http://127.0.0.1:1/v1",
        "--device": "h100",
        "--model": "llama-3.1-8b",
        "--precision": "fp8",
        "--output": str(tmp_path / "device.yaml"),
    } | changed
    url = given.pop("url")
    result = typed(url, *(word for pair in given.items() for word in pair))
    assert result.exit_code != 0
    assert says in str(result.exception) + result.output
