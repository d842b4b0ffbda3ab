"""A real worker whose backend answers at once: ``python -m benchmarks.contestants.null_worker``."""

import atexit
import time
from collections.abc import Sequence

from benchmarks.worker import HIGHEST, POOL
from shunter.processes import worker as process
from streams.engine.log import Partition, Record
from streams.engine.stage import TransactionPlan
from topics import Response, Settings, Usage, VariantStatus
from workers.backends.base import Call, Load, Outcome
from workers.stage.worker import Worker

ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Track 3."}}]}


class NullBackend:
    """Answers without doing anything."""

    def __init__(self, variants: tuple[str, ...]) -> None:
        self._variants = variants

    async def start(self) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing at the stop."""

    async def probe(self, variant: str) -> None:
        """Do nothing: it always answers."""

    async def execute(self, call: Call) -> Outcome:
        """Return the answer."""
        now = time.time()
        return Outcome(Response(200, ANSWER), Usage(100, 4), now, now, now, 0.001)

    def load(self) -> Load:
        """Return an idle load."""
        return Load(0.0, {name: VariantStatus(0, 0, 1.0) for name in self._variants})


class CountedWorker(Worker):
    """Records its largest number of requests in flight."""

    highest = 0

    async def work(self, partition: Partition, records: Sequence[Record]) -> TransactionPlan | None:
        """Take records in, as the worker does; none leaves before they are counted."""
        found = await super().work(partition, records)
        taken = sum(len(lane.open) for lane in self._lanes.values())
        CountedWorker.highest = max(CountedWorker.highest, taken)
        return found


def main() -> None:
    """Run the worker of the benchmark's pool, and print at its end the most in flight."""
    atexit.register(lambda: print(f"{HIGHEST} {CountedWorker.highest}"))
    process.Worker = CountedWorker
    process.make_backend = lambda _pool, options, _policy, _clock: NullBackend(
        tuple(option.variant for option in options)
    )
    process.run_worker(POOL, Settings())


if __name__ == "__main__":
    main()
