"""Files and batches of a gateway, put together; without a place for them there are none."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from gateway.batches.directory import DirectoryBatches
from gateway.batches.driver import Parts
from gateway.batches.endpoints import BATCHES, KEYS, SERVICE
from gateway.batches.endpoints import ROUTES as BATCH_ROUTES
from gateway.batches.exchange import KafkaLines
from gateway.batches.keys import BatchKeys, DirectoryKeys, ObjectKeys
from gateway.batches.object_batches import ObjectBatches
from gateway.batches.service import BatchService
from gateway.batches.store import BatchStore
from gateway.batches.texts import LineTexts
from gateway.files.directory import DirectoryFiles
from gateway.files.endpoints import FILES
from gateway.files.endpoints import ROUTES as FILE_ROUTES
from gateway.files.expiries import Expiries
from gateway.files.object_files import ObjectFiles
from gateway.files.store import FileStore
from gateway.http.state import Gateway
from streams.engine.clock import Clock
from topics.objects import Objects

_LOCAL = ("file://", "local://")


def add_batches(app: web.Application, gateway: Gateway) -> None:
    """Add the endpoints of files and batches, and what drives batches, if there is a place.

    Raises:
        OSError: it can't be written, or is no store that gateways can share.
    """
    place = gateway.settings.gateway_files
    if place is None:
        return
    files, store, keys = stores(place, gateway.clock)
    lines = KafkaLines(gateway.settings, gateway.exchange, gateway.telemetry, gateway.clock)
    texts, most = LineTexts(gateway.fleet, gateway.proofs), gateway.settings.request_bytes_max
    service = BatchService(store, keys, Parts(files, lines, texts, gateway.clock, most))
    app[FILES], app[BATCHES], app[KEYS], app[SERVICE] = files, store, keys, service
    app.add_routes([*FILE_ROUTES, *BATCH_ROUTES])

    async def drive(_app: web.Application) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()
            with contextlib.suppress(Exception):
                await lines.stop()

    app.cleanup_ctx.append(drive)


def stores(place: str, clock: Clock) -> tuple[FileStore, BatchStore, BatchKeys]:
    """Return what keeps files, batches and their keys: in a directory, or at a URL of fsspec.

    Raises:
        OSError: it can't be written, or is no store that gateways can share.
    """
    for scheme in _LOCAL:
        place = place.removeprefix(scheme)
    if "://" not in place:
        root = Path(place)
        return DirectoryFiles(root), DirectoryBatches(root), DirectoryKeys(root)
    objects = Objects(place)
    objects.check("probe")
    expiries = Expiries(objects)
    return (
        ObjectFiles(objects, expiries),
        ObjectBatches(objects, expiries, clock),
        ObjectKeys(objects, expiries),
    )
