"""Live migration: replies that go on at another replica of their pool, so that steps are shared."""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.hardware.answering import AnsweringReplica
from policies.hardware.iteration import Event, FirstToken, Job, Moved
from policies.hardware.pool_fill import PoolFill
from policies.hardware.replica import Ask

# Bytes a second at which a replica copies keys and values to another: a network card of 200 Gbit/s,
# one reply after the other. They are copied while the reply goes on (Sun et al., Llumnix, OSDI
# 2024), so that it stops for the iteration under way at either end.
COPY_BYTES_PER_S = 25e9
# Seconds from one look at the replicas to the next. By replays of bursty traces with 0.01 to 0.25.
LOOK_S = 0.01
# Of a replica's places for a variant, the share whose use anywhere in the pool keeps the variant's
# replies from moving to a replica without it. By the same replays with 0.1 to 2.
SPARSE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class _Move:
    """A job on its way from a replica to another."""

    job: Job
    source: int
    target: int


class Migration:
    """Moves replies to replicas that run anyway. Times are seconds of the model.

    A decode step costs nearly the same for one sequence as for ten, and a replica that has work
    never pauses. So the replies of a variant on a replica move, all or none, to others that decode
    the same variant for as many or more; where a variant is rare, and its replica has nothing else
    to do, also to one whose steps take longer, in which they find company. A replica takes a reply
    as it takes a request: every TPOT on it would hold. Prompts don't move, nor does what decodes
    beside a prompt of its variant: the step is needed then.
    """

    def __init__(
        self, replicas: Sequence[AnsweringReplica], fill: PoolFill, look_s_min: float = 0.0
    ) -> None:
        """Take the pool's replicas, how far they are filled, and the least time between looks."""
        self._replicas = replicas
        self._fill = fill
        self._moves: dict[str, _Move] = {}
        self._copied: dict[str, float] = {}
        self._look_s, self._look_at = max(LOOK_S, look_s_min), 0.0
        self._link_free_at = [0.0] * len(replicas)
        self.moved = 0
        """How many replies have moved."""

    def look(self, now: float) -> set[int]:
        """Send on what is copied and begin further moves; return the replicas that are left."""
        left: set[int] = set()
        if now < self._look_at:
            return left
        self._look_at = now + self._look_s
        for name in [name for name, at in self._copied.items() if at <= now]:
            del self._copied[name]
            source = self._moves[name].source
            self._replicas[source].accelerator.send(name, now)
            left.add(source)
        for variant in self._replicas[0].accelerator.variants:
            self._gather(variant, now)
        self._empty(now)
        return left

    def note(self, event: Event, now: float) -> int | None:
        """Take note of a replica's event; return the replica on which its job goes on, if one."""
        move = None if isinstance(event, FirstToken) else self._moves.pop(event.id, None)
        if move is None:
            return None
        self._copied.pop(event.id, None)
        target = self._replicas[move.target]
        if not isinstance(event, Moved):
            target.no_longer_expect(move.job, now)
            return None
        self.moved += 1
        target.accelerator.receive(event, now)
        return move.target

    def due_at(self, now: float) -> float | None:
        """Return when to look again, whatever the replicas do; None while at most one works."""
        working = sum(not each.accelerator.is_idle for each in self._replicas)
        return max(now, self._look_at) if working > 1 else None

    def _gather(self, variant: str, now: float) -> None:
        """Move a variant's replies from where few are to where more are."""
        counts = [each.accelerator.jobs_of(variant) for each in self._replicas]
        order = sorted(
            (i for i, count in enumerate(counts) if count), key=lambda i: (counts[i], -i)
        )
        for position, source in enumerate(order[:-1]):
            self._move_all(source, {variant: order[:position:-1]}, now)

    def _empty(self, now: float) -> None:
        """Move all replies of a replica to slower ones, those of rare variants to any of them."""
        accelerators = [each.accelerator for each in self._replicas]
        working = [i for i, each in enumerate(accelerators) if not each.is_idle]
        working.sort(key=lambda i: (accelerators[i].round_s(), i))
        for position, source in enumerate(working[:-1]):
            slower = working[:position:-1]
            targets = {}
            for variant in accelerators[source].variants:
                if accelerators[source].jobs_of(variant):
                    targets[variant] = self._slower_for(variant, slower)
            self._move_all(source, targets, now)

    def _slower_for(self, variant: str, slower: Sequence[int]) -> list[int]:
        """Return replicas for a variant's replies, those with the most of it first."""
        counts = [each.accelerator.jobs_of(variant) for each in self._replicas]
        most = SPARSE_SHARE * self._replicas[0].accelerator.max_batch_of(variant)
        able = slower if sum(counts) < most else [i for i in slower if counts[i]]
        return sorted(able, key=lambda i: -counts[i])

    def _move_all(self, source: int, targets: dict[str, list[int]], now: float) -> None:
        """Move the jobs of these variants, each to the first of its targets with room, or none."""
        here = self._replicas[source].accelerator
        if any(map(here.has_prompts, targets)) or any(
            move.target == source for move in self._moves.values()
        ):
            return
        going = [each for variant in targets for each in here.decoding_of(variant)]
        may_move = self._replicas[source].may_move
        if any(job.id in self._moves or not may_move(job.id) for job, _ in going):
            return
        found: list[tuple[Job, int, int]] = []
        for job, written in going:
            target = self._target(job, written, targets[job.variant], now)
            if target is None:
                for other, _, kept in found:
                    self._replicas[kept].no_longer_expect(other, now)
                return
            self._replicas[target].expect(job, now)
            found.append((job, written, target))
        for job, written, target in found:
            copy_s = here.kv_bytes(job.variant, job.input_tokens + written) / COPY_BYTES_PER_S
            copied_at = max(now, self._link_free_at[source]) + copy_s
            self._link_free_at[source] = self._copied[job.id] = copied_at
            self._moves[job.id] = _Move(job, source, target)

    def _target(self, job: Job, written: int, targets: Sequence[int], now: float) -> int | None:
        left = job.output_tokens - written
        ask = Ask(job.variant, job.input_tokens + written, left, tpot_s=job.tpot_s)
        able = (i for i in targets if self._replicas[i].can_take(ask, now, self._fill.limits))
        return next(able, None)
