"""The batches of a process: it takes those that nobody has, and drives each to its end."""

import asyncio
import contextlib
import logging

from gateway.batches.driver import Driver, Parts
from gateway.batches.keys import BatchKeys
from gateway.batches.signs_of_life import BEAT_S
from gateway.batches.store import BatchFolder, BatchStore
from gateway.exchange.publisher import UnavailableError
from gateway.files.threads import in_thread
from streams.engine.unexpected_errors import log_unexpected

# Batches that one gateway drives at a time; each has a few MB of its lines' places in memory.
DRIVEN_MAX = 50
LOOK_S = 1.0
SWEEP_S = 60.0
# After a batch could not go on, for Kafka or the disk.
AGAIN_S = 2.0

logger = logging.getLogger(__name__)


class BatchService:
    """Looks for batches and drives them, until it is stopped; others then go on with them."""

    def __init__(self, store: BatchStore, keys: BatchKeys, parts: Parts) -> None:
        self._store = store
        self._keys = keys
        self._parts = parts
        self._driven: dict[str, asyncio.Task[None]] = {}
        self._look_now = asyncio.Event()
        self._going: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to look for batches. Raises OSError where they can't be reached."""
        await in_thread(self._store.start)
        self._going = [asyncio.create_task(self._beat()), asyncio.create_task(self._look())]

    def look_now(self) -> None:
        """Look at once: there is a new batch."""
        self._look_now.set()

    async def stop(self) -> None:
        """Give up all batches; what is written down is gone on with elsewhere."""
        tasks = [*self._driven.values(), *self._going]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            await in_thread(self._store.stop)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await in_thread(self._store.beat)
            except OSError as error:
                logger.warning("the other gateways can't be told of this one: %s", error)
            except Exception as error:  # noqa: BLE001 - the next beat may do better
                log_unexpected(error, "the other gateways are not told of this one")

    async def _look(self) -> None:
        swept_at = float("-inf")
        while True:
            now = self._parts.clock.now()
            try:
                for batch_id, folder in await in_thread(self._store.open_batches):
                    if len(self._driven) < DRIVEN_MAX and batch_id not in self._driven:
                        self._drive(batch_id, folder)
                if not 0 <= now - swept_at < SWEEP_S:
                    swept_at = now
                    await in_thread(self._store.sweep, now)
                    await in_thread(self._parts.files.sweep, now)
                    await in_thread(self._keys.sweep, now)
            except OSError as error:
                logger.warning("the batches can't be looked through: %s", error)
            except Exception as error:  # noqa: BLE001 - what one look can't read ends no other
                log_unexpected(error, "the batches are not looked through")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._look_now.wait()
            self._look_now.clear()

    def _drive(self, batch_id: str, folder: BatchFolder) -> None:
        task = asyncio.create_task(self._driven_to_end(batch_id, folder))
        self._driven[batch_id] = task
        task.add_done_callback(lambda _: self._driven.pop(batch_id, None))

    async def _driven_to_end(self, batch_id: str, folder: BatchFolder) -> None:
        try:
            async with folder.owned() as is_ours:
                if is_ours:
                    await self._drive_owned(batch_id, folder)
        except OSError as error:
            logger.warning("%s can't be taken up now: %s", batch_id, error)

    async def _drive_owned(self, batch_id: str, folder: BatchFolder) -> None:
        try:
            batch = await in_thread(folder.read)
            await Driver(folder, batch, self._parts).run()
        except FileNotFoundError:
            logger.info("%s has ended meanwhile", batch_id)
        except (UnavailableError, OSError) as error:
            logger.warning("%s does not go on now: %s", batch_id, error)
            await asyncio.sleep(AGAIN_S)
        except Exception:
            logger.exception("%s does not go on, in an unforeseen way", batch_id)
            await asyncio.sleep(AGAIN_S)
