"""The load of a model server, read from its own Prometheus metrics."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from policies.config.fleet import OpenAIBackendConfig as Declared
from topics import ServerLoad
from workers.backends.openai.server import OpenAIServer, read_body

BYTES_MAX = 2 * 1024 * 1024
SCRAPE_S = 1.0
SCRAPE_S_MAX = 5.0
# A server without metrics is asked again now and then: they may be switched on.
ASK_AGAIN_S = 60.0
# Of the lines that matter some hundreds, a series for each engine or model, fit in here.
TOLD_CHARACTERS_MAX = 64 * 1024
# More than any server has. What it tells may be beyond what can be added up, or written in JSON.
VALUE_MAX = 1_000_000_000
# Of what is wrong with a page, which may quote a line of it.
SHOWN_CHARACTERS_MAX = 200

# Running, queued, share of the KV cache in use: as vLLM, SGLang, TGI and llama.cpp name them.
_NAMES: dict[str, tuple[str, ...]] = {
    "running": (
        "vllm:num_requests_running",
        "sglang:num_running_reqs",
        "tgi_batch_current_size",
        "llamacpp:requests_processing",
    ),
    "queued": (
        "vllm:num_requests_waiting",
        "sglang:num_queue_reqs",
        "tgi_queue_size",
        "llamacpp:requests_deferred",
    ),
    "kv_usage": (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "sglang:token_usage",
        "llamacpp:kv_cache_usage_ratio",
    ),
}

logger = logging.getLogger(__name__)


class ServerMetrics:
    """Polls a server's metrics; ``load`` is the newest, None while there is none."""

    def __init__(self, declared: Declared, server: OpenAIServer) -> None:
        parts = urlsplit(declared.base_url)
        self._url = declared.metrics_url or f"{parts.scheme}://{parts.netloc}/metrics"
        self._names = {str(field): name for field, name in declared.metrics_names.items()}
        self._server = server
        self._task: asyncio.Task[None] | None = None
        self.load: ServerLoad | None = None

    def start(self) -> None:
        """Begin to poll."""
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Stop polling."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        try:
            await self._scrape_for_ever()
        finally:
            # A value that is no longer read would be reported forever.
            self.load = None

    async def _scrape_for_ever(self) -> None:
        while True:
            had_some, wait_s = self.load is not None, SCRAPE_S
            try:
                async with asyncio.timeout(SCRAPE_S_MAX):
                    self.load = await self._scrape()
                if self.load is None:
                    wait_s = ASK_AGAIN_S
            except Exception as error:  # noqa: BLE001 - whatever it was, the next page may be well
                self.load = None
                if had_some:
                    told = f"{type(error).__name__}: {error}"[:SHOWN_CHARACTERS_MAX]
                    logger.warning("no metrics from %s: %s", self._url, told)
            await asyncio.sleep(wait_s)

    async def _scrape(self) -> ServerLoad | None:
        async with self._server.get(self._url) as response:
            if response.status != 200:
                return None
            text = await read_body(response, BYTES_MAX)
        return read_load(text.decode("utf-8", "replace"), self._names)


def read_load(text: str, names: Mapping[str, str]) -> ServerLoad | None:
    """Return a server's load from a page of Prometheus metrics.

    If a metric has several series (one per engine or model), counts add up and the fullest share
    of the cache counts. None if the page has none of the metrics.

    Args:
        text: in the Prometheus exposition format.
        names: the server's names for ``running``, ``queued`` and ``kv_usage``, if it is not one of
            those known.

    Raises:
        ValueError: it is not such a page, or has too many series.
    """
    wanted = {
        name: field
        for field, known in _NAMES.items()
        for name in ((names[field],) if field in names else known)
    }
    found: dict[str, list[float]] = {}
    lines = _lines_of(text, tuple(wanted))
    try:
        samples = [s for family in text_string_to_metric_families(lines) for s in family.samples]
    except IndexError as error:
        # The parser looks for an end of some labels that have none.
        raise ValueError("the labels of a series have no end") from error
    for sample in samples:
        field = wanted.get(sample.name)
        if field is not None and 0 <= sample.value < float("inf"):
            found.setdefault(field, []).append(min(sample.value, VALUE_MAX))
    if not found:
        return None
    counts = {field: round(sum(found[field])) for field in ("running", "queued") if field in found}
    usage = max(found["kv_usage"]) if "kv_usage" in found else None
    return ServerLoad(
        counts.get("running"), counts.get("queued"), None if usage is None else min(usage, 1.0)
    )


def _lines_of(page: str, names: Sequence[str]) -> str:
    """Return the lines that begin with one of the names.

    Only a few lines of thousands matter; parsing or splitting the whole page would block the
    worker.
    """
    page = f"\n{page}\n"
    lines, characters = dict[int, str](), 0
    for name in names:
        at = page.find(f"\n{name}")
        while at >= 0:
            end = page.index("\n", at + 1)
            if at not in lines:
                lines[at] = page[at + 1 : end + 1]
                characters += end - at
            if characters > TOLD_CHARACTERS_MAX:
                raise ValueError(f"more than {TOLD_CHARACTERS_MAX:,} characters of series")
            at = page.find(f"\n{name}", end)
    return "".join(lines.values())
