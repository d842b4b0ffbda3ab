"""The load of a model server, from its own metrics."""

import contextlib
import random

import pytest
from model_server import Exchange, good, serving
from openai_cases import backend_at, call, can_be_told
from running_system import eventually

from topics import ServerLoad
from workers.backends.openai.server_metrics import VALUE_MAX, read_load

VLLM = """
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="small"} 3.0
vllm:num_requests_running{engine="1",model_name="small"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="small"} 7.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="small"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="small"} 0.75
# TYPE vllm:request_success counter
vllm:request_success_total{finished_reason="stop"} 41.0
"""
SGLANG = """
sglang:num_running_reqs{model_name="small"} 5
sglang:num_queue_reqs{model_name="small"} 2
sglang:token_usage{model_name="small"} 0.28
"""
TGI = "tgi_queue_size 4\ntgi_batch_current_size 8\n"
LLAMA_CPP = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 6\n"
OWN = "my_running 1\nmy_queue 2\nmy_cache 0.5\nvllm:num_requests_running 9\n"
OWN_NAMES = {"running": "my_running", "queued": "my_queue", "kv_usage": "my_cache"}


@pytest.mark.parametrize(
    ("page", "names", "load"),
    [
        (VLLM, {}, ServerLoad(5, 7, 0.75)),
        (SGLANG, {}, ServerLoad(5, 2, 0.28)),
        (TGI, {}, ServerLoad(8, 4)),
        (LLAMA_CPP, {}, ServerLoad(1, 6)),
        (OWN, OWN_NAMES, ServerLoad(1, 2, 0.5)),
        ("", {}, None),
        ("<html>not found</html>", {}, None),
        ("vllm:num_requests_running NaN\n", {}, None),
        ("vllm:num_requests_running 1e30\n", {}, ServerLoad(VALUE_MAX)),
        (f"tgi_queue_size 5\ntgi_queue_size {'9' * 400}\n", {}, ServerLoad(None, VALUE_MAX + 5)),
        (
            'tgi_queue_size{a="0"} 1e308\ntgi_queue_size 1e308\n',
            {},
            ServerLoad(None, 2 * VALUE_MAX),
        ),
        ("vllm:num_requests_running +Inf\nsglang:token_usage 7\n", {}, ServerLoad(kv_usage=1.0)),
    ],
)
def test_load_is_read_by_the_names_that_servers_use(
    page: str, names: dict[str, str], load: ServerLoad | None
) -> None:
    assert read_load(page, names) == load


def test_a_page_that_is_broken_is_a_value_error_or_tells_less() -> None:
    dice = random.Random(6)
    for _ in range(2000):
        page = list(VLLM)
        for _ in range(dice.randrange(1, 12)):
            page[dice.randrange(len(page))] = dice.choice('{}",= \n\\#eN0\x00é')
        with contextlib.suppress(ValueError):
            can_be_told(read_load("".join(page), {}))


@pytest.mark.parametrize("value", ["1e30", "1e308", "9" * 400])
def test_the_largest_load_can_be_told(value: str) -> None:
    page = f"{VLLM}\nvllm:num_requests_running {value}\nvllm:num_requests_waiting {value}\n"
    can_be_told(read_load(page, {}))


async def test_heartbeats_have_what_the_server_tells() -> None:
    async def told(x: Exchange) -> None:
        if x.path == "/metrics":
            await x.json(VLLM.encode(), Content_Type="text/plain")
        else:
            await good(x)

    async with serving(told) as server, backend_at(server.base_url) as backend:
        await backend.execute(call())

        async def known() -> bool:
            return backend.load().server == ServerLoad(5, 7, 0.75)

        await eventually(known, "the load is known")
        # What waits there is device time that a router should count.
        assert backend.load().backlog_s > 0


async def test_a_server_without_metrics_serves_as_well() -> None:
    async def none(x: Exchange) -> None:
        if x.path == "/metrics":
            await x.json({"detail": "Not Found"}, 404)
        else:
            await good(x)

    async with serving(none) as server, backend_at(server.base_url) as backend:
        await backend.execute(call())

        async def is_asked() -> bool:
            return any(exchange.path == "/metrics" for exchange in server.seen)

        await eventually(is_asked, "its metrics are asked for")
        assert backend.load().server is None
