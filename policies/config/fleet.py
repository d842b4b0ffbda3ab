"""The fleet: devices, their regions, and the model variants that each pool of them serves."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from policies.config.backends import (
    Backend,
    CPUBackendConfig,
    OpenAIBackendConfig,
    SimulatedBackendConfig,
)
from policies.config.hardware import (
    BYTES_PER_WEIGHT,
    COMPUTED_IN,
    Count,
    Device,
    HardwareCatalogue,
    Kind,
    Model,
    Name,
    NonNegative,
    Operation,
    Positive,
    Precision,
)
from policies.config.places import Found, Region, Site, Slug, place_problems
from policies.config.prices import TokenPrice
from policies.config.schema import (
    Versioned,
    cross_field_error,
    did_you_mean,
    load_mapping,
    parse_declaration,
    validate_mapping,
)
from policies.config.series import Series
from policies.config.serving import ExtendedDeclaration, KVPrecision
from policies.hardware.roofline import MEMORY_UTILIZATION

__all__ = [
    "BYTES_PER_WEIGHT",
    "COMPUTED_IN",
    "Backend",
    "CPUBackendConfig",
    "Device",
    "Fleet",
    "Kind",
    "Lane",
    "Model",
    "OpenAIBackendConfig",
    "Operation",
    "Pool",
    "Precision",
    "Serve",
    "SimulatedBackendConfig",
    "parse_fleet",
]

Lane = Literal["direct", "batch"]

RESIDENT_REQUEST_TOKENS = 8_192
"""A replica must hold, beside all weights, the KV cache of one request of this length."""


class Serve(ExtendedDeclaration):
    """One model variant that a pool serves: the model's weights at one precision.

    `max_batch` is the most sequences that run together on one replica, `tensor_parallel` its
    devices, the same number for all variants of a pool. `kv_precision` is that of the cache, if not
    as usual: FP8 for weights that are multiplied at 8 bits or fewer, else BF16.
    """

    added: ClassVar[frozenset[str]] = frozenset({"kv_precision", "quality", "quality_source"})

    model: Name
    variant: Name
    precision: Precision
    max_batch: Count
    tensor_parallel: Count = 1
    kv_precision: KVPrecision | None = None
    quality: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the published weights' scores that it keeps; None: that of its precision."""
    quality_source: str = ""
    """Where the figure is from."""


class Pool(ExtendedDeclaration):
    """Equal devices in one region; every variant is resident on each replica.

    `usd_per_hour`, for one device, overrides the device's. With a `token_price` its work is paid by
    tokens, as at a vendor, and the device only tells what latencies to expect. `failure_rate` is
    the share of requests expected to fail here before the pool has measured its own. `power_kw_max`
    bounds what its devices and their hosts draw, and `site` names what else bounds it. `tariff`
    names the series that has the price of a device hour by time, in times of `usd_per_hour`'s.
    """

    added: ClassVar[frozenset[str]] = frozenset(
        {"site", "power_kw_max", "token_price", "tariff", "interruptions_per_hour", "notice_s"}
    )

    device: Name
    count: Count
    region: Slug
    lanes: tuple[Lane, ...] = Field(default=("direct", "batch"), min_length=1)
    labels: dict[str, str] = Field(default_factory=dict)
    serves: tuple[Serve, ...] = Field(min_length=1)
    backend: Backend = SimulatedBackendConfig()
    usd_per_hour: NonNegative | None = None
    token_price: TokenPrice | None = None
    failure_rate: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    site: Slug | None = None
    power_kw_max: Positive | None = None
    tariff: Slug | None = None
    interruptions_per_hour: NonNegative = 0.0
    """How often a replica is taken away, as spot capacity is."""
    notice_s: NonNegative = 0.0
    """How long before that it is said."""

    @field_validator("lanes")
    @classmethod
    def _lanes_once(cls, lanes: tuple[Lane, ...]) -> tuple[Lane, ...]:
        if len(set(lanes)) != len(lanes):
            raise ValueError("names a lane twice")
        return lanes

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        if self.token_price is not None and self.usd_per_hour is not None:
            message = "is paid by token_price or by usd_per_hour: give one of them"
            raise cross_field_error("Pool", [(("usd_per_hour",), self.usd_per_hour, message)])
        return self


class Fleet(HardwareCatalogue, Versioned):
    """Pools and every device and model that they name."""

    added: ClassVar[frozenset[str]] = HardwareCatalogue.added | {"sites", "regions", "series"}

    pools: dict[Slug, Pool] = Field(min_length=1)
    sites: dict[Slug, Site] = Field(default_factory=dict)
    regions: dict[Slug, Region] = Field(default_factory=dict)
    series: dict[Slug, Series] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        found = [each for name in self.pools for each in self._pool_problems(name)]
        found += [*self._variant_problems(), *place_problems(self)]
        if found:
            raise cross_field_error("Fleet", found)
        return self

    def seen_from(self, start_s: float) -> Self:
        """Return it with times that count from ``start_s`` (epoch seconds), as a trace's do."""
        series = {name: each.seen_from(start_s) for name, each in self.series.items()}
        return self.model_copy(update={"series": series}) if series else self

    def _pool_problems(self, name: str) -> Iterator[Found]:
        pool, path = self.pools[name], ("pools", name)
        device = self.devices.get(pool.device)
        if device is None:
            message = f"unknown device; {did_you_mean(pool.device, self.devices)}"
            yield (*path, "device"), pool.device, message
        seen: set[str] = set()
        replica_devices = pool.serves[0].tensor_parallel
        for index, serve in enumerate(pool.serves):
            here = (*path, "serves", index)
            if serve.model not in self.models:
                message = f"unknown model; {did_you_mean(serve.model, self.models)}"
                yield (*here, "model"), serve.model, message
            if serve.variant in seen:
                message = "is served twice in this pool; keep one, or rename one"
                yield (*here, "variant"), serve.variant, message
            seen.add(serve.variant)
            if serve.tensor_parallel != replica_devices or pool.count % replica_devices:
                message = (
                    f"must be the same for all variants of a pool (here {replica_devices}, by the"
                    f" first) and divide its count, {pool.count}"
                )
                yield (*here, "tensor_parallel"), serve.tensor_parallel, message
            if device and device.computes_in(serve.precision) is None:
                can = [each for each in BYTES_PER_WEIGHT if device.computes_in(each)]
                message = f"{pool.device} can't compute it; use one of {', '.join(can)}"
                yield (*here, "precision"), serve.precision, message
        if device and all(serve.model in self.models for serve in pool.serves):
            yield from self._memory_problems(name)
        if isinstance(pool.backend, OpenAIBackendConfig):
            for variant in pool.backend.served_name.keys() - seen:
                message = f"not a variant of this pool; {did_you_mean(variant, seen)}"
                yield (*path, "backend", "served_name", variant), variant, message

    def _memory_problems(self, name: str) -> Iterator[Found]:
        pool = self.pools[name]
        replica_devices = pool.serves[0].tensor_parallel
        served = [(self.models[serve.model], serve) for serve in pool.serves]
        usable_gb = self.devices[pool.device].memory_gb * replica_devices * MEMORY_UTILIZATION
        weights_gb = sum(model.weights_bytes(serve.precision) for model, serve in served) / 1e9
        kv_gb = 1e-9 * max(
            min(RESIDENT_REQUEST_TOKENS, model.context_tokens) * model.kv_bytes_per_token
            for model, _ in served
        )
        if weights_gb + kv_gb > usable_gb:
            message = (
                f"all variants are resident on each replica: {weights_gb:.1f} GB of weights and"
                f" {kv_gb:.1f} GB of KV cache for one request don't fit in {usable_gb:.1f} GB"
                f" ({MEMORY_UTILIZATION:g} of {replica_devices} x {pool.device}); serve fewer"
                " variants, at fewer bits, or with more tensor_parallel"
            )
            yield ("pools", name, "serves"), pool.serves, message

    def _variant_problems(self) -> Iterator[Found]:
        """Yield variants of one name that differ: batches and audits refer to the name."""
        first: dict[str, tuple[str, Serve]] = {}
        for name, pool in self.pools.items():
            for index, serve in enumerate(pool.serves):
                other_name, other = first.setdefault(serve.variant, (name, serve))
                if (serve.model, serve.precision) != (other.model, other.precision):
                    message = (
                        f"is {other.model} at {other.precision} in pool {other_name} and"
                        f" {serve.model} at {serve.precision} here; give one another name"
                    )
                    yield ("pools", name, "serves", index, "variant"), serve.variant, message


def parse_fleet(
    text: str,
    file: str,
    packaged_devices_text: str = "",
    packaged_models_text: str = "",
    complete: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Fleet:
    """Read a fleet file, whose pools may name packaged devices and models without declaring them.

    The user's declaration of a name replaces the packaged one entirely. The fleet holds the user's
    declarations and the packaged ones that its pools name, so that unused entries don't change its
    version.

    Args:
        text: the fleet file.
        file: its name, for errors.
        packaged_devices_text: a YAML mapping with `devices`, and `serving` constants by name;
            empty: none are packaged.
        packaged_models_text: a YAML mapping with `models`; empty: none are packaged.
        complete: fills in what the text names and doesn't hold: files of series, time zones.

    Raises:
        DeclarationError: lists every problem of the first text that has any.
    """
    mapping = load_mapping(text, file)
    complete(mapping)
    merged = dict(mapping)
    for field, packaged_text in (
        ("devices", packaged_devices_text),
        ("models", packaged_models_text),
    ):
        declared = mapping.get(field, {})
        if packaged_text and isinstance(declared, dict):
            packaged = parse_declaration(packaged_text, f"packaged {field}.yaml", HardwareCatalogue)
            merged[field] = {**getattr(packaged, field), **declared}
            own = mapping.get("serving", {})
            if packaged.serving and isinstance(own, dict):
                merged["serving"] = {**packaged.serving, **own}
    fleet = validate_mapping(merged, file, Fleet)
    devices = {pool.device for pool in fleet.pools.values()} | set(mapping.get("devices", {}))
    models = {serve.model for pool in fleet.pools.values() for serve in pool.serves}
    models |= set(mapping.get("models", {}))
    return Fleet(
        devices={name: fleet.devices[name] for name in devices},
        models={name: fleet.models[name] for name in models},
        pools=fleet.pools,
        sites=fleet.sites,
        regions=fleet.regions,
        series=fleet.series,
    )
