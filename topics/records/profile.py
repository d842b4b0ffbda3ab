"""The profile: the router's knowledge of a request, carried in a header from stage to stage.

The request is parsed once, by the router. Every later stage (batcher, router again after a
fallback, worker) reads this profile and leaves the payload untouched.
"""

from dataclasses import field
from typing import Any, Literal

from topics.records.frozen import dataclass
from topics.records.integers import Integer
from topics.records.money import Reservation, Spent
from topics.records.quality import QualityCheck
from topics.records.quote_terms import Quoted

TagSource = Literal["client", "policy", "estimate"]


@dataclass(frozen=True, slots=True)
class Tag:
    """One known property of a request, its source and its confidence (0 to 1)."""

    value: Any
    source: TagSource
    confidence: float


@dataclass(frozen=True, slots=True)
class Fallback:
    """A pool that was tried and failed, and why."""

    pool: str
    reason: str


@dataclass(frozen=True, slots=True)
class Profile:
    """A request as placement sees it. Times are epoch seconds, durations seconds.

    ``regions``, ``precisions`` and ``pools`` are None if anything is allowed; an empty tuple
    allows nothing. ``output_tokens_high`` is a length that similar replies seldom exceed, None if
    unknown; ``output_tokens`` is the expected length. ``certain_tokens`` is the prompt alone where
    the reply's length is an estimate that may not fit; None: prompt and reply must fit.
    ``key`` is the id of the API key that a gateway proved, and ``bound_by`` are the places in the
    policy that bind the request. ``any_quality``: it chose precisions itself, so that its class's
    least quality is not asked for. ``price_factor`` is what its tier is charged, in times its cost.
    ``reserved`` is what its budgets keep for it until it ends, and ``spent`` what its earlier tries
    cost.
    """

    id: str
    tenant: str
    task: str
    model: str
    operation: str
    tier: str
    created_at: float
    deadline: float
    input_tokens: Integer
    output_tokens: Integer
    ttft_s: float | None
    tpot_s: float | None
    latency_sensitive: bool
    batchable: bool
    target_chance: float
    longest_wait_s: float
    window_s: float
    ingest_partition: Integer
    routed_at: float
    regions: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    pools: tuple[str, ...] | None = None
    exclude_pools: tuple[str, ...] = ()
    data_class: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    max_cost_usd: float | None = None
    session: str | None = None
    attempt: Integer = 1
    fallbacks: tuple[Fallback, ...] = ()
    output_tokens_high: Integer | None = None
    certain_tokens: Integer | None = None
    key: str | None = None
    bound_by: tuple[str, ...] = ()
    any_quality: bool = False
    price_factor: float = 1.0
    reserved: Reservation | None = None
    spent: Spent | None = None
    quality: QualityCheck | None = None
    """Of a request that is run a second time, and of that run."""
    quote: Quoted | None = None
    """What it was promised by the quote that it took."""
    max_gco2: float | None = None
    """Most grams of CO2 that a placement of it may be expected to emit."""
    counts_energy: bool = False
    """Whether a budget of it is in watt hours, so that it may go only where energy is known."""
    prompts: Integer = 1
    """Prompts of a list; ``input_tokens`` are those of all of them."""
    replies: Integer = 1
    """Replies to each prompt; ``output_tokens`` are those of one of them."""

    @property
    def answers(self) -> int:
        """Return how many replies it is for, of all its prompts."""
        return self.prompts * self.replies

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of one of its prompts, a mean that is rounded up."""
        return self.input_tokens if self.prompts == 1 else -(-self.input_tokens // self.prompts)

    @property
    def tokens(self) -> int:
        """Return the expected tokens of its prompts and of all its replies."""
        return self.input_tokens + self.answers * self.output_tokens

    @property
    def is_urgent(self) -> bool:
        """True for a request with an SLO of TTFT or TPOT."""
        return self.ttft_s is not None or self.tpot_s is not None

    @property
    def is_background(self) -> bool:
        """Return True if this is a second run, whose answer no client gets."""
        return self.of is not None

    @property
    def of(self) -> str | None:
        """Return the id of the request that this is a second run of; None if it is none."""
        return None if self.quality is None else self.quality.of

    @property
    def workload(self) -> str:
        """Return the class whose terms bind it: of a second run the class that is watched."""
        return self.task if self.quality is None else self.quality.task
