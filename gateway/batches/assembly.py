"""Files and batches of a gateway, put together; without a folder for them there are none."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from gateway.batches.driver import Parts
from gateway.batches.endpoints import BATCHES, KEYS, SERVICE
from gateway.batches.endpoints import ROUTES as BATCH_ROUTES
from gateway.batches.exchange import KafkaLines
from gateway.batches.keys import BatchKeys
from gateway.batches.service import BatchService
from gateway.batches.store import BatchStore
from gateway.batches.texts import LineTexts
from gateway.files.endpoints import FILES
from gateway.files.endpoints import ROUTES as FILE_ROUTES
from gateway.files.store import FileStore
from gateway.http.state import Gateway


def add_batches(app: web.Application, gateway: Gateway) -> None:
    """Add the endpoints of files and batches, and what drives batches, if there is a folder.

    Raises:
        OSError: it can't be written.
    """
    root = gateway.settings.gateway_files
    if root is None:
        return
    files, store = FileStore(root), BatchStore(root)
    lines = KafkaLines(gateway.settings, gateway.exchange)
    texts, most = LineTexts(gateway.fleet, gateway.proofs), gateway.settings.request_bytes_max
    keys = BatchKeys(root)
    service = BatchService(store, keys, Parts(files, lines, texts, gateway.clock, most))
    app[FILES], app[BATCHES], app[KEYS], app[SERVICE] = files, store, keys, service
    app.add_routes([*FILE_ROUTES, *BATCH_ROUTES])

    async def drive(_app: web.Application) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()
            with contextlib.suppress(Exception):
                await lines.stop()

    app.cleanup_ctx.append(drive)
