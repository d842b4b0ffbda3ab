"""The load of a replica: its jobs, running and waiting, and the memory that they take."""

from collections.abc import Iterable, Mapping

from policies.hardware.iteration import VariantLimits, VariantQueue
from policies.hardware.roofline import MEMORY_UTILIZATION, TYPICAL_CONTEXT_TOKENS


class ReplicaLoad:
    """The lanes of a replica's variants, and the KV memory that they share.

    Raises:
        ValueError: no variants, replicas of different memory, or weights that do not fit.
    """

    def __init__(self, variants: Mapping[str, VariantLimits]) -> None:
        rooflines = [limits.roofline for limits in variants.values()]
        if len({roofline.memory_bytes for roofline in rooflines}) != 1:
            raise ValueError(
                f"variants {sorted(variants)} must be at least one and name the same memory_bytes: "
                f"they share one replica"
            )
        usable_bytes = MEMORY_UTILIZATION * rooflines[0].memory_bytes
        weights_bytes = sum(roofline.weights_bytes for roofline in rooflines)
        self._kv_capacity_bytes = usable_bytes - weights_bytes
        if self._kv_capacity_bytes <= 0:
            raise ValueError(
                f"the weights of {sorted(variants)} take {weights_bytes:.3g} bytes of "
                f"{usable_bytes:.3g} usable: serve fewer variants, or a lower precision"
            )
        self._lanes = [
            VariantQueue(index, limits.roofline, limits.max_batch)
            for index, limits in enumerate(variants.values())
        ]
        self._lane_of = dict(zip(variants, self._lanes, strict=True))

    @property
    def running(self) -> int:
        """Admitted sequences."""
        return sum(lane.running for lane in self._lanes)

    @property
    def queued(self) -> int:
        """Jobs that wait for admission."""
        return sum(len(lane.queue) for lane in self._lanes)

    @property
    def variants(self) -> Iterable[str]:
        """The variants that are resident."""
        return self._lane_of

    def running_of(self, variant: str) -> int:
        """Return the admitted sequences of one variant."""
        return self._lane_of[variant].running

    def queued_of(self, variant: str) -> int:
        """Return the jobs of one variant that wait for admission."""
        return len(self._lane_of[variant].queue)

    def has_prompts(self, variant: str) -> bool:
        """Return True if a job of a variant has no first token yet."""
        lane = self._lane_of[variant]
        return bool(lane.prefilling or lane.queue)

    def jobs_of(self, variant: str) -> int:
        """Return the jobs of one variant, running or waiting."""
        lane = self._lane_of[variant]
        return lane.running + len(lane.queue)

    def max_batch_of(self, variant: str) -> int:
        """Return the most sequences of a variant that may run together."""
        return self._lane_of[variant].max_batch

    def round_s(self, joining: str | None = None, context_tokens: int = 0) -> float:
        """Return seconds of one decode iteration of each variant with work: variants take turns.

        Jobs that wait, are in prefill or expected count as if they decoded already.

        Args:
            joining: a variant that gets one more sequence.
            context_tokens: context of that sequence.
        """
        total_s = 0.0
        joined = self._lane_of[joining] if joining is not None else None
        for lane in self._lanes:
            soon = len(lane.prefilling) + len(lane.queue) + len(lane.expected)
            tokens = lane.context_tokens + soon * TYPICAL_CONTEXT_TOKENS
            if lane is joined:
                soon += 1
                tokens += context_tokens
            sequences = min(lane.max_batch, len(lane.decoding) + soon)
            if sequences:
                total_s += lane.roofline.step_s(sequences, tokens)
        return total_s

    def has_room(self, variant: str, tokens: int) -> bool:
        """Return True if a job of ``tokens``, input and output, would be admitted at once."""
        lane = self._lane_of[variant]
        if lane.places + len(lane.queue) >= lane.max_batch:
            return False
        return tokens * lane.roofline.kv_bytes_per_token <= self.kv_free_bytes

    def kv_bytes(self, variant: str, tokens: int) -> float:
        """Return the KV memory of so many tokens of a variant."""
        return tokens * self._lane_of[variant].roofline.kv_bytes_per_token

    @property
    def kv_free_bytes(self) -> float:
        """KV memory that no running or waiting job needs."""
        waiting_bytes = sum(state.kv_bytes for each in self._lanes for _, state in each.queue)
        return self._kv_capacity_bytes - self._kv_used_bytes() - waiting_bytes

    @property
    def kv_wanted(self) -> float:
        """Share of the KV memory that running and waiting jobs need; more than 1 has to wait."""
        return 1.0 - self.kv_free_bytes / self._kv_capacity_bytes

    @property
    def decoded(self) -> tuple[int, int]:
        """Decode steps so far, and their output tokens."""
        return sum(lane.steps for lane in self._lanes), sum(lane.tokens for lane in self._lanes)

    @property
    def kv_usage(self) -> float:
        """The reserved share of the KV memory, 0 to 1."""
        return self._kv_used_bytes() / self._kv_capacity_bytes

    def _can_admit(self, lane: VariantQueue) -> bool:
        head = lane.head
        if head is None:
            return False
        set_aside_bytes = sum(
            first.kv_bytes
            for other in self._lanes
            if (first := other.head) and first.key < head.key and other is not lane
        )
        needed_bytes = self._kv_used_bytes() + set_aside_bytes + head.kv_bytes
        return needed_bytes <= self._kv_capacity_bytes

    def _kv_used_bytes(self) -> float:
        return sum(lane.reserved_tokens * lane.roofline.kv_bytes_per_token for lane in self._lanes)
