"""Classes of work: objectives and limits of their requests, and what a service tier changes."""

from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat, StringConstraints

from policies.config.bounds import NOT_BOUND, Bound, Budgets
from policies.config.schema import Declaration
from policies.config.serving import ExtendedDeclaration

COMPARE = r"^(labels|tool_calls|greedy|tokens|embedding|judge:[a-z][a-z0-9_-]{0,62})$"
Chance = Annotated[float, Field(gt=0, lt=1)]


class ClassWatch(Declaration):
    """A share of a class's requests runs a second time, and the answers are compared."""

    reference: str
    """The model variant that others are compared with."""
    reference_pool: str | None = None
    """The pool of the reference; None is any that serves it."""
    share: Annotated[float, Field(gt=0, le=1)]
    """Part of the requests that run a second time, chosen by their ids."""
    compare: Annotated[str, StringConstraints(pattern=COMPARE)]
    """``labels``, ``tool_calls``, ``greedy``, ``tokens``, ``embedding``, or ``judge:`` and the name
    of an extension."""
    within: Annotated[float, Field(gt=0, lt=1)]
    """Mean difference, 0 to 1, up to which a variant answers as the reference does."""
    budget_usd_per_day: Annotated[float, Field(ge=0)]
    """Most that second runs may cost a day, in UTC."""
    window_s: Annotated[float, Field(ge=0)] = 600.0
    """Longest wait of a second run for company."""
    deadline_s: PositiveFloat = 3600.0
    """Time after which a second run is given up."""


class WorkloadClass(ExtendedDeclaration):
    """Defaults of one class of requests, where the request itself gives no value."""

    added: ClassVar[frozenset[str]] = frozenset(
        {"bound", "quality_min", "watch", "minds_drift", "price_wait_s", "max_gco2", "objective"}
        | {"budgets"}
    )

    latency_sensitive: bool
    """Served at once; held only while no pool that may serve it is alive."""
    batchable: bool
    """May wait in a batch window where that is the cheapest way to be in time."""
    ttft_ms: PositiveFloat | None = None
    """Wanted time to the first token, from ``created_at``."""
    tpot_ms: PositiveFloat | None = None
    """Wanted time per output token after the first."""
    target_chance: Chance = 0.9
    """Chance of meeting the SLO that a placement must have, if any has it."""
    objective: Chance | None = None
    """Share of requests that is to meet the SLO, by which alerts go; None: ``target_chance``."""
    deadline_s: PositiveFloat
    """Time to the finish after which the answer is worthless: the request ends as expired."""
    window_s: Annotated[float, Field(ge=0)] = 0.0
    """Longest wait for a batch to fill."""
    longest_wait_s: PositiveFloat
    """Longest wait for a pool to come alive; then the request ends as rejected."""
    output_tokens: Annotated[int, Field(ge=0)]
    """Expected length of a reply before any was seen."""
    precisions: tuple[str, ...] | None = None
    """Weight precisions whose loss of quality this class tolerates; None tolerates all."""
    bound: Bound = NOT_BOUND
    """What each request of the class is kept to, whatever it says."""
    budgets: Budgets = ()
    """What each tenant's requests of the class may use in windows of time."""
    quality_min: Annotated[float, Field(gt=0, le=1)] | None = None
    """Least quality of a variant that is good enough where the request names no precisions."""
    watch: ClassWatch | None = None
    """How this class's answers are compared with a reference; None: they are not."""
    minds_drift: bool = True
    """Gets no variant that has drifted from its reference, whatever class found that."""
    price_wait_s: Annotated[float, Field(ge=0)] | None = None
    """Longest wait for a cheaper or greener hour, of requests that may wait at all; None: as long
    as the deadline lets them. It begins when a request is held."""
    max_gco2: Annotated[float, Field(gt=0)] | None = None
    """Most grams of CO2 that a placement of a request may be expected to emit; a request can only
    lower it."""


class Tier(ExtendedDeclaration):
    """Changes that a ``service_tier`` makes to the class; None changes nothing."""

    added: ClassVar[frozenset[str]] = frozenset({"price_factor"})

    price_factor: Annotated[float, Field(gt=0, le=1_000)] = 1.0
    """What a request of the tier is charged, in times its cost: promised, limited, evidenced and
    counted so."""
    latency_sensitive: bool | None = None
    batchable: bool | None = None
    slo: bool = True
    """False drops the class's latency SLO; the deadline stays."""
    deadline_s: PositiveFloat | None = None
    window_s: Annotated[float, Field(ge=0)] | None = None
    longest_wait_s: PositiveFloat | None = None
