"""Files and batches of a gateway, put together; without a place for them there are none."""

import contextlib
import logging
import tempfile
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

logger = logging.getLogger(__name__)

_MOUNTS = Path("/proc/self/mounts")
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_LOCAL = ("file://", "local://")


def add_batches(app: web.Application, gateway: Gateway) -> None:
    """Add the endpoints of files and batches, and what drives batches, if there is a place.

    Raises:
        OSError: it can't be written, or is no store that gateways can share.
    """
    place = gateway.settings.gateway_files
    if place is None:
        return
    files, store, keys = stores(place, gateway.clock, gateway.settings.gateway_copies)
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


def stores(
    place: str, clock: Clock, copies: Path | None = None
) -> tuple[FileStore, BatchStore, BatchKeys]:
    """Return what keeps files, batches and their keys: in a directory, or at a URL of fsspec.

    Args:
        place: the directory or URL.
        clock: the process's.
        copies: directory for copies of inputs from an object store; None: that of temporary files.

    Raises:
        OSError: it can't be written, or is no store that gateways can share.
    """
    for scheme in _LOCAL:
        place = place.removeprefix(scheme)
    if "://" not in place:
        root = Path(place)
        return DirectoryFiles(root), DirectoryBatches(root), DirectoryKeys(root)
    if is_in_memory(copies or Path(tempfile.gettempdir())):
        logger.warning(
            "%s is memory: name a directory on a disk in SHUNTER_GATEWAY_COPIES, for copies of the"
            " inputs of batches, up to 200 MiB each",
            copies or tempfile.gettempdir(),
        )
    objects = Objects(place)
    objects.check("probe")
    expiries = Expiries(objects)
    return (
        ObjectFiles(objects, expiries),
        ObjectBatches(objects, expiries, clock, copies),
        ObjectKeys(objects, expiries),
    )


def is_in_memory(directory: Path, mounts: Path = _MOUNTS) -> bool:
    """Return whether what is written to a directory is kept in memory; False if nobody tells.

    Args:
        directory: the directory.
        mounts: the kernel's table of what is mounted.
    """
    try:
        rows = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return False
    place, deepest, found = directory.resolve(), Path("/"), ""
    for _, where, kind, *_ in rows:
        # The table writes a space as \040.
        mounted = Path(where.replace("\\040", " "))
        if place.is_relative_to(mounted) and mounted.is_relative_to(deepest):
            deepest, found = mounted, kind
    return found in _IN_MEMORY
