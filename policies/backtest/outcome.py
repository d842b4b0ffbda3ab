"""The outcome of each request of a backtest."""

from dataclasses import dataclass, field
from typing import Literal

from policies.backtest.route import Send
from policies.config.prices import nano_of
from policies.scoring.slo import kept
from topics import Envelope, Profile
from topics.records.money import Amounts
from topics.records.placement import Path

Status = Literal["completed", "failed", "expired", "rejected"]


@dataclass(slots=True)
class ReplayOutcome:
    """One request, with the hardware of its last try. Times are seconds since the trace's start.

    Tokens are those of all its prompts and replies. ``sends`` are its tries. ``cost_usd`` is its
    share of busy device time, earlier tries included.
    ``promised`` is the promise of its last send to a pool.
    """

    row: int
    profile: Profile
    input_tokens: int
    output_tokens: int
    prefix_tokens: int = 0
    cached_tokens: int = 0
    status: Status | None = None
    reason: str = ""
    pool: str = ""
    device: int | None = None
    variant: str = ""
    precision: str = ""
    path: Path | None = None
    batch_id: str | None = None
    dispatched_s: float | None = None
    started_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    cost_usd: float = 0.0
    energy_wh: float = 0.0
    gco2: float = 0.0
    """Watt hours and grams of CO2 of all tries, as far as the fleet tells them."""
    tokens: int = 0
    """Read and written by all tries."""
    held_s: float | None = None
    """Time in the hold, of all tries; None of one that never waited there."""
    sends: list[Send] = field(default_factory=list)
    promised: Envelope | None = None
    rounds: int = 1
    """In how many its answers are written, one after the other."""

    @property
    def used(self) -> Amounts:
        """All that its tries used."""
        return Amounts(1, self.tokens, nano_of(self.cost_usd), nano_of(self.energy_wh))

    @property
    def tries(self) -> int:
        """Number of times it was sent to a pool."""
        return len(self.sends)

    @property
    def reply_tokens(self) -> int:
        """Tokens of one reply."""
        return -(-self.output_tokens // self.profile.answers)

    @property
    def ttft_s(self) -> float | None:
        """Time from arrival to the first token."""
        if self.first_token_s is None:
            return None
        return self.first_token_s - self.profile.created_at

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first."""
        steps = self.rounds * self.reply_tokens - 1
        if self.finished_s is None or self.first_token_s is None or steps < 1:
            return None
        return (self.finished_s - self.first_token_s) / steps

    @property
    def met_deadline(self) -> bool:
        """True if it was answered by its deadline."""
        at = self.finished_s
        return self.status == "completed" and at is not None and at <= self.profile.deadline

    @property
    def missed_ttft(self) -> bool:
        """True if its first token came too late."""
        return not self._kept.get("ttft", True)

    @property
    def missed_tpot(self) -> bool:
        """True if its tokens came too slowly."""
        return not self._kept.get("tpot", True)

    @property
    def attained(self) -> bool:
        """True if it was answered within deadline, TTFT and TPOT."""
        return self._kept["all"]

    @property
    def _kept(self) -> dict[str, bool]:
        return kept(
            in_time=self.met_deadline,
            ttft_s=self.ttft_s,
            ttft_max_s=self.profile.ttft_s,
            tpot_s=self.tpot_s,
            tpot_max_s=self.profile.tpot_s,
        )
