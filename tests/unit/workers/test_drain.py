"""A worker that is told to end: what runs is finished, within the notice of its pool's end."""

import asyncio

import pytest
from metrics_cases import make_metrics
from stream_cases import Yard, soon, step_until
from worker_cases import ScriptedBackend, place, serve

from workers.services import NOTICE_SHARE, DrainingService


async def draining(
    yard: Yard, backend: ScriptedBackend, *, notice_s: float, drain_s_max: float
) -> DrainingService:
    """Return the service of a worker that runs one of two requests and has taken both."""
    for name in ("c0", "c1"):
        place(yard, name)
    worker, transactor = await serve(yard, backend)
    settings = yard.settings.model_copy(update={"drain_s_max": drain_s_max})
    service = DrainingService(
        worker, settings, transactor._signer, make_metrics(yard), notice_s=notice_s
    )
    # In place of one on Kafka.
    service._transactor = transactor
    await step_until(transactor, lambda: len(backend.running) == 2, "the calls")
    return service


@pytest.mark.parametrize(
    ("notice_s", "drain_s_max", "least_s"),
    [(0.6, 30.0, NOTICE_SHARE * 0.6), (30.0, 0.2, None), (0.0, 0.3, 0.3)],
    ids=["a short notice", "a long notice", "no notice"],
)
async def test_a_worker_drains_for_its_notice_or_else_as_the_settings_say(
    notice_s: float, drain_s_max: float, least_s: float | None
) -> None:
    yard, backend = Yard(), ScriptedBackend()
    service = await draining(yard, backend, notice_s=notice_s, drain_s_max=drain_s_max)
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    stopping = asyncio.create_task(service.on_stop())
    await asyncio.sleep(0.05)
    backend.finish("c0")
    if least_s is None:
        # Longer than the settings allow.
        await asyncio.sleep(2 * drain_s_max)
        assert not stopping.done()
        backend.finish("c1")
    await soon(stopping, "the stop")
    finished = {"c0"} if least_s else {"c0", "c1"}
    assert yard.results().keys() == finished
    if least_s is not None:
        assert least_s <= loop.time() - began_at < 15.0
        assert backend.cancelled == ["c1"]
