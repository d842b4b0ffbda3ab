"""A real worker whose backend answers at once: ``python -m benchmarks.contestants.null_worker``."""

import time

import workers.run
from benchmarks.worker import POOL
from topics import Response, Settings, Usage, VariantStatus
from workers.backend import Call, Load, Outcome

ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Track 3."}}]}


class NullBackend:
    """Answers without doing anything."""

    def __init__(self, variants: tuple[str, ...]) -> None:
        self._variants = variants

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def probe(self, variant: str) -> None:
        """It answers."""

    async def execute(self, call: Call) -> Outcome:
        """Return the answer."""
        now = time.time()
        return Outcome(Response(200, ANSWER), Usage(100, 4), now, now, now, 0.001)

    def load(self) -> Load:
        """Return that nothing runs."""
        return Load(0.0, {name: VariantStatus(0, 0, 1.0) for name in self._variants})


def main() -> None:
    """Run the worker of the benchmark's pool."""
    workers.run.make_backend = lambda _pool, options, _policy, _clock: NullBackend(
        tuple(option.variant for option in options)
    )
    workers.run.run_worker(POOL, Settings())


if __name__ == "__main__":
    main()
