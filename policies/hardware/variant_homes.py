"""The replicas of a full pool that are each variant's own."""

from collections.abc import Sequence

from policies.hardware.replica import Ask, Replica

# By so much of a replica a variant's part must reach into it for the replica to be one of its own;
# and the seconds after which what was asked for counts half. By replays of the busiest 40 s of the
# open trace at rate 10 on 8 replicas, with 0.05 to 0.4 and with 4 to 20 s.
PART_MIN = 0.2
HALF_LIFE_S = 10.0
# Of what was asked for of late, the part for which no replica was idle, from which on they are
# shared out: a burst is served wherever there is room. By replays of the packaged sample, which is
# over in 11 s, with 0 to 0.95.
FULL_SHARE = 0.6


class VariantHomes:
    """The replicas of a full pool that are each variant's own, by what is asked of it.

    Where all variants run on all replicas, each step of one waits for those of the others, and
    few hide behind prompts of their own variant. So the replicas of a pool in which none is idle
    are shared out: in their order each variant has as many as its part of the device time that was
    asked for of late, the one whose steps take longest first. Times are seconds.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        """Take the pool's replicas; nothing was asked of it yet."""
        self._replicas = replicas
        self._asked_s: dict[str, float] = {}
        self._noted_at = 0.0
        self._full_s = 0.0
        variants = replicas[0].accelerator.variants
        self._by_step = sorted(variants, key=replicas[0].step_s, reverse=True)

    @property
    def longest(self) -> str:
        """The variant whose decode step takes longest."""
        return self._by_step[0]

    def note(self, ask: Ask, now: float) -> None:
        """Count what a request asks for: its prompt, and its part of steps that are full."""
        if now > self._noted_at:
            left = 0.5 ** ((now - self._noted_at) / HALF_LIFE_S)
            self._asked_s = {name: left * asked_s for name, asked_s in self._asked_s.items()}
            self._full_s *= left
            self._noted_at = now
        replica = self._replicas[0]
        sequences = replica.accelerator.max_batch_of(ask.variant)
        context_tokens = ask.input_tokens + ask.output_tokens // 2
        step_s = replica.step_s(ask.variant, sequences, sequences * context_tokens) / sequences
        asked_s = replica.prefill_s(ask) + ask.output_tokens * step_s
        self._asked_s[ask.variant] = self._asked_s.get(ask.variant, 0.0) + asked_s
        if all(each.jobs for each in self._replicas):
            self._full_s += asked_s

    def of(self, variant: str) -> list[int] | None:
        """Return the replicas that are a variant's own; None: they are not shared out."""
        total_s, count = sum(self._asked_s.values()), len(self._replicas)
        if not self._asked_s.get(variant) or self._full_s < FULL_SHARE * total_s:
            return None
        if not all(each.jobs for each in self._replicas):
            return None
        before = self._by_step[: self._by_step.index(variant)]
        begin = sum(self._asked_s.get(each, 0.0) for each in before) / total_s * count
        end = begin + self._asked_s[variant] / total_s * count
        parts = [min(end, index + 1) - max(begin, index) for index in range(count)]
        own = [index for index, part in enumerate(parts) if part > PART_MIN]
        return own or [max(range(count), key=parts.__getitem__)]
