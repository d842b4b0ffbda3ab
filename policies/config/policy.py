"""The policy: objectives of classes of work, and their hard constraints."""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from math import inf
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    StringConstraints,
    field_validator,
    model_validator,
)

from policies.config.bounds import NOT_BOUND, APIKey, Bound, Budgets, Rule
from policies.config.budgets import Counted
from policies.config.classes import Tier, WorkloadClass
from policies.config.options import Option
from policies.config.order import PoolGroup
from policies.config.plugins import Extension
from policies.config.quotes import Quotes
from policies.config.recognition import RecognitionRule, sought_words, stricter, unknown_tasks
from policies.config.schema import (
    Declaration,
    Versioned,
    cross_field_error,
    did_you_mean,
    parse_declaration,
)
from policies.config.serving import ExtendedDeclaration
from topics import Profile

DEFAULT_CLASS = "default_class"
"""In a profile's ``bound_by``: its class was recognised, and grants no more than the default."""

ClassName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
ExtensionName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]

_TIMES = (
    *("ttft_ms", "tpot_ms", "deadline_s", "window_s", "longest_wait_s"),
    *("margin_s", "room_wait_s", "backlog_s_max", "valid_s", "price_wait_s"),
)
_RATES = ("prior_rate_per_s", "rate_per_s")


class DataClass(Declaration):
    """Places that data of a class may go; adds to the request's own constraints."""

    regions: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    labels: dict[str, str] = Field(default_factory=dict)


class TenantLimits(ExtendedDeclaration):
    """Limits on a tenant's use of the system."""

    added: ClassVar[frozenset[str]] = frozenset({"bound", "budgets", "needs_key", "watch"})

    rate_per_s: PositiveFloat | None = None
    """Requests per second over all ingest partitions, counted over 10 s; more are rejected. None
    sets no limit."""
    share: PositiveFloat = 1.0
    """Weight against other tenants where there is not enough for all."""
    bound: Bound = NOT_BOUND
    """What each request of the tenant is kept to, whatever it says."""
    budgets: Budgets = ()
    """What its requests may use in windows of time; those of `default_tenant` count for each tenant
    by itself."""
    needs_key: bool = False
    """Whether a request must come with a key of the tenant, as a gateway proves it."""
    watch: bool = True
    """False: none of the tenant's requests runs a second time for the quality watch."""


class WindowLimits(ExtendedDeclaration):
    """Limits of batch windows."""

    added: ClassVar[frozenset[str]] = frozenset({"backlog_s_max"})

    members_max: PositiveInt = 256
    """Most members of a batch, whatever the device could take."""
    margin_s: Annotated[float, Field(ge=0)] = 1.0
    """Time left over when a batch is released by slack: transport and the estimate's error."""
    room_wait_s: Annotated[float, Field(ge=0)] = 0.0
    """Longest wait for room beside work that runs already, where a batch that is ready would wake
    a device for itself. It ends earlier where what waits could be late. 0: as many go at once as
    the device takes."""
    backlog_s_max: Annotated[float, Field(ge=0)] | None = None
    """The most seconds of prompts ahead of each replica with which a batch that may wait goes to a
    pool that has direct requests and no idle replica: its prompts slow down what decodes beside
    them. None: any."""
    length_buckets_tokens: tuple[PositiveInt, ...] = (512, 2048, 8192, 32768)
    """Upper ends of the prompt-length buckets; prompts of different buckets never share a batch."""
    prior_rate_per_s: PositiveFloat = 0.0001
    """Arrival rate assumed of a group of which nothing has been seen. As many as this lets expect
    are promised to share a batch; a request that stays alone waits for them in vain."""

    @field_validator("length_buckets_tokens")
    @classmethod
    def _buckets_grow(cls, bounds: tuple[int, ...]) -> tuple[int, ...]:
        if any(upper <= lower for lower, upper in pairwise(bounds)):
            raise ValueError("must grow: each bucket ends above the one before it")
        return bounds


class Scarcity(Declaration):
    """Price of a place when few are left. Never part of a promised cost or of a limit."""

    price_factor: Annotated[float, Field(ge=1, le=1_000)] = 1.0
    """The price of the last place of a pool, in times its cost: about what the dearest pool costs
    against the cheapest. 1 takes no account of scarcity."""
    from_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a pool's places or KV memory in use from which the price grows, exponentially."""


class Estimates(Declaration):
    """Initial values of estimates before anything has been measured."""

    spread: PositiveFloat = 0.35
    """Standard deviation of ln(actual / predicted) latency. An untuned roofline is off by up to
    2x on decode (inference-sim's comparison of five simulators on vLLM), most much less."""
    transport_s: Annotated[float, Field(ge=0)] = 0.05
    """Time a direct request spends in Kafka on its way to the device and back."""


class Policy(Versioned, ExtendedDeclaration):
    """The whole policy. Its version is the digest of its content."""

    added: ClassVar[frozenset[str]] = frozenset({"keys", "order", "never", "recognize", "quotes"})

    classes: dict[ClassName, WorkloadClass]
    default_class: ClassName = "chat"
    """The class of a request if nothing determines another."""
    long_context_tokens: PositiveInt = 8192
    """Prompts of at least this length are ``long_context`` if nothing determines another class."""
    recognize: tuple[RecognitionRule, ...] = ()
    """Rules by which a request that names no class gets one: the first that holds."""
    tiers: dict[str, Tier] = Field(default_factory=dict)
    data_classes: dict[str, DataClass] = Field(default_factory=dict)
    tenants: dict[str, TenantLimits] = Field(default_factory=dict)
    default_tenant: TenantLimits = Field(default_factory=TenantLimits)
    """Of each tenant that ``tenants`` doesn't name."""
    keys: dict[str, APIKey] = Field(default_factory=dict)
    """API keys by their ids."""
    order: tuple[PoolGroup, ...] = ()
    """Groups of pools in the order in which they are used: the next where none before it has one
    that is likely enough to be in time. In a group the price decides; pools of none come last."""
    never: tuple[PoolGroup, ...] = ()
    """Groups of pools that nothing is sent to."""
    windows: WindowLimits = Field(default_factory=WindowLimits)
    scarcity: Scarcity = Field(default_factory=Scarcity)
    estimates: Estimates = Field(default_factory=Estimates)
    quotes: Quotes = Field(default_factory=Quotes)
    attempts_max: PositiveInt = 3
    """Tries of a request, the first included."""
    retry_cost_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the expected cost of a second try in a candidate's price."""

    extensions: tuple[ExtensionName, ...] = ()
    """Constraints and scorers in Python, by the names of their entry points, in order."""
    extension_versions: dict[ExtensionName, str] = Field(default_factory=dict)
    """By extension, the distribution it is from. Filled in when it is loaded; one that is given
    must be what is installed."""

    _bound: tuple[Extension, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _extensions_agree(self) -> Self:
        if len(set(self.extensions)) != len(self.extensions):
            raise ValueError("extensions names one twice")
        if unknown := self.extension_versions.keys() - set(self.extensions):
            raise ValueError(
                f"extension_versions names {', '.join(sorted(unknown))}, which extensions does not"
            )
        return self

    @model_validator(mode="after")
    def _default_is_declared(self) -> Self:
        if self.default_class not in self.classes:
            known = ", ".join(sorted(self.classes))
            raise ValueError(f"default_class {self.default_class!r} is not one of {known}")
        return self

    @model_validator(mode="after")
    def _recognizes_declared_classes(self) -> Self:
        if found := unknown_tasks(self.recognize, self.classes):
            raise cross_field_error("Policy", found)
        return self

    @model_validator(mode="after")
    def _bounds_are_of_declared_data(self) -> Self:
        found: list[tuple[tuple[str | int, ...], Any, str]] = [
            (
                (*path, "bound", "data_classes", index),
                name,
                f"not a data class of the policy; {did_you_mean(name, self.data_classes)}",
            )
            for path, bound in self.bounds()
            for index, name in enumerate(bound.data_classes or ())
            if name not in self.data_classes
        ]
        if found:
            raise cross_field_error("Policy", found)
        return self

    def bounds(self) -> list[tuple[tuple[str, ...], Bound]]:
        """Return each bound with its place; most bind nothing."""
        return [
            (("default_tenant",), self.default_tenant.bound),
            *((("tenants", name), each.bound) for name, each in self.tenants.items()),
            *((("keys", name), each.bound) for name, each in self.keys.items()),
            *((("classes", name), each.bound) for name, each in self.classes.items()),
        ]

    @cached_property
    def sought_words(self) -> frozenset[bytes]:
        """Return the words that the rules of recognition look for."""
        return sought_words(self.recognize)

    @cached_property
    def binds(self) -> bool:
        """Return whether anything is bound; nearly all decisions ask, and few policies bind."""
        return any(bound != NOT_BOUND for _, bound in self.bounds())

    def rules_for(self, tenant: str, key: str | None, task: str) -> list[Rule]:
        """Return all that a request of a tenant, a key (or None) and a class is bound by."""
        rules: list[Rule] = []
        if key is not None and key in self.keys:
            rules.append((f"keys.{key}", self.keys[key].bound))
        where = f"tenants.{tenant}" if tenant in self.tenants else "default_tenant"
        rules.append((where, self.limits_of(tenant).bound))
        if task in self.classes:
            rules.append((f"classes.{task}", self.classes[task].bound))
        return [rule for rule in rules if rule[1] != NOT_BOUND]

    @cached_property
    def has_budgets(self) -> bool:
        """Return whether any tenant, key or class has a budget."""
        tenants = (self.default_tenant, *self.tenants.values())
        found = [*(each.budgets for each in tenants), *(key.budgets for key in self.keys.values())]
        return self._has_class_budgets or any(found)

    @cached_property
    def _has_class_budgets(self) -> bool:
        return any(workload.budgets for workload in self.classes.values())

    def is_counted(self, tenant: str, key: str | None) -> bool:
        """Return whether a request may have budgets, before its class is known."""
        return self._has_class_budgets or bool(self.budgets_of(tenant, key))

    def classes_of(self, task: str, *, is_kept: bool) -> tuple[str, ...]:
        """Return the classes whose budgets count a request of a class.

        Args:
            task: its class.
            is_kept: whether it was recognised, and gets no more than the default class gives.
        """
        if is_kept and task != self.default_class:
            return (task, self.default_class)
        return (task,)

    def budgets_of(
        self, tenant: str, key: str | None, classes: Sequence[str] = ()
    ) -> list[Counted]:
        """Return what a request of a tenant, a key (or None) and some classes is counted by."""
        if not self.has_budgets:
            return []
        where = f"tenants.{tenant}" if tenant in self.tenants else "default_tenant"
        found = [(where, tenant, budget) for budget in self.limits_of(tenant).budgets]
        if key is not None and key in self.keys:
            found += [(f"keys.{key}", key, budget) for budget in self.keys[key].budgets]
        for task in classes:
            if task in self.classes:
                # One partition has the accounts of a tenant, those of each class among them.
                budgets = self.classes[task].budgets
                found += [(f"classes.{task}", tenant, budget) for budget in budgets]
        return found

    def budgets_for(self, profile: Profile) -> list[Counted]:
        """Return what a request is counted by."""
        classes = self.classes_of(profile.task, is_kept=DEFAULT_CLASS in profile.bound_by)
        return self.budgets_of(profile.tenant, profile.key, classes)

    def counts_energy(self, tenant: str, key: str | None, task: str, *, is_kept: bool) -> bool:
        """Return whether a budget that counts a request is in watt hours."""
        counted = self.budgets_of(tenant, key, self.classes_of(task, is_kept=is_kept))
        return any(budget.wh is not None for _, _, budget in counted)

    def floor_of(self, profile: Profile) -> float:
        """Return the least quality of a variant that may serve a request."""
        workload = None if profile.any_quality else self.classes.get(profile.workload)
        if workload is None:
            return 0.0
        least = workload.quality_min or 0.0
        if DEFAULT_CLASS in profile.bound_by:
            return max(least, self.classes[self.default_class].quality_min or 0.0)
        return least

    def patience_s(self, profile: Profile) -> float:
        """Return how long a request may wait for a cheaper hour, beside what its deadline says."""
        workload = self.classes.get(profile.workload)
        if workload is None or not profile.batchable:
            return 0.0
        return inf if workload.price_wait_s is None else workload.price_wait_s

    def as_strict(self, task: str) -> WorkloadClass:
        """Return a class, and of all that it grants the stricter of its and the default class's."""
        found = self._as_strict.get(task)
        if found is None:
            found = stricter(self.classes[task], self.classes[self.default_class])
            self._as_strict[task] = found
        return found

    @cached_property
    def _as_strict(self) -> dict[str, WorkloadClass]:
        return {}

    def is_never(self, option: Option) -> bool:
        """Return whether nothing is sent to an option."""
        return any(group.has(option) for group in self.never)

    def limits_of(self, tenant: str) -> TenantLimits:
        """Return a tenant's limits."""
        return self.tenants.get(tenant, self.default_tenant)

    # Asked for twice in each decision, and pydantic takes 5 us for a private attribute.
    @cached_property
    def rules(self) -> tuple[Extension, ...]:
        """Return the extensions, in order.

        Raises:
            ValueError: they were not loaded, so their constraints can't be enforced.
        """
        if len(self._bound) != len(self.extensions):
            raise ValueError(f"the extensions {', '.join(self.extensions)} were not loaded")
        return self._bound

    def bind(self, extensions: Sequence[Extension]) -> Self:
        """Return this policy with its extensions loaded and their versions included in its own."""
        versions = {extension.name: extension.version for extension in extensions}
        dumped = self.model_dump(exclude_none=True) | {"extension_versions": versions}
        return self._remade(dumped, extensions)

    def _remade(self, dumped: dict[str, Any], extensions: Sequence[Extension]) -> Self:
        policy = type(self).model_validate(dumped)
        policy._bound = tuple(extensions)  # noqa: SLF001 - of another of our own
        return policy

    def faster(self, factor: float) -> Self:
        """Return this policy for a replay at ``factor`` times the speed."""
        powers = dict.fromkeys(_TIMES, -1) | dict.fromkeys(_RATES, 1)

        def scaled(node: Any) -> Any:
            if isinstance(node, list | tuple):
                return [scaled(each) for each in node]
            if not isinstance(node, dict):
                return node
            return {
                key: value * factor ** powers[key]
                if key in powers and isinstance(value, int | float)
                else scaled(value)
                for key, value in node.items()
            }

        return self._remade(scaled(self.model_dump(exclude_none=True)), self._bound)


def parse_policy(text: str, file: str) -> Policy:
    """Return the policy in a YAML text.

    Raises:
        DeclarationError: naming file, field and value of each problem.
    """
    return parse_declaration(text, file, Policy)
