"""The fleet: devices, their regions, and the model variants that each pool of them serves."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

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
    Declaration,
    Versioned,
    cross_field_error,
    did_you_mean,
    load_mapping,
    parse_declaration,
    validate_mapping,
)
from policies.config.series import Series
from policies.config.serving import ExtendedDeclaration, KVPrecision, Times
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

_ServedName = Annotated[str, Field(min_length=1, max_length=256)]
"""Whatever the server calls it: vLLM and llama.cpp also use paths."""

_File = Annotated[str, Field(min_length=1, max_length=4_096)]


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


class SimulatedBackendConfig(ExtendedDeclaration):
    """A simulated accelerator, which answers after the time that the roofline gives.

    `time_scale` 10 answers ten times as fast. `times` are factors on what its devices take, which
    no router knows. `prompt_chunks`: how much of prompts is computed beside what decodes.
    `replies`: whether they go on at other replicas, where they have company.
    """

    added: ClassVar[frozenset[str]] = frozenset({"times", "prompt_chunks", "replies"})

    type: Literal["simulated"] = "simulated"
    provider_name: ClassVar[str] = "shunter"
    time_scale: Positive = 1.0
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    times: Times = Times()
    prompt_chunks: Literal["within_tpot", "full"] = "within_tpot"
    replies: Literal["stay", "migrate"] = "stay"


def _plain_http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise ValueError("must be a URL that begins with http:// or https:// and names a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no credentials; name their variable in api_key_env")
    if parts.query or parts.fragment or any(character.isspace() for character in url):
        raise ValueError("must hold no query, fragment or space")
    return url


_Url = Annotated[str, Field(max_length=2_048), AfterValidator(_plain_http_url)]
_MetricName = Annotated[str, Field(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]{0,255}$")]


# Vendors with an OpenAI-compatible API by the end of its host, as the GenAI conventions name them.
_PROVIDERS = {
    "openai.azure.com": "azure.ai.openai",
    "services.ai.azure.com": "azure.ai.inference",
    "anthropic.com": "anthropic",
    "cohere.ai": "cohere",
    "deepseek.com": "deepseek",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "groq.com": "groq",
    "mistral.ai": "mistral_ai",
    "perplexity.ai": "perplexity",
    "x.ai": "x_ai",
}


class OpenAIBackendConfig(ExtendedDeclaration):
    """A model server with the OpenAI API, such as vLLM, SGLang, TGI, llama.cpp or a vendor's.

    `api_key_env` names the environment variable that holds the key. `served_name` gives the
    server's name for a variant, if that is not the variant's own.
    """

    added: ClassVar[frozenset[str]] = frozenset({"priority", "provider"})

    type: Literal["openai"]
    base_url: _Url
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")] | None = None
    served_name: dict[Name, _ServedName] = Field(default_factory=dict)
    ca_file: _File | None = None
    """PEM file of the authorities to trust in place of the machine's."""
    stream: Annotated[bool, Field(strict=True)] = True
    """False for a server that can't stream: the time to the first token is then not known."""
    connect_s_max: Positive = 3.0
    """Longest wait for a connection."""
    first_token_s_max: Positive = 120.0
    """Longest wait for the first token: queue and prefill of the server. For an answer that is not
    streamed, longest wait for all of it."""
    idle_s_max: Positive = 30.0
    """Longest wait between two tokens."""
    answer_bytes_max: Annotated[int, Field(strict=True, ge=1_024, le=10 * 1024 * 1024)] = (
        8 * 1024 * 1024
    )
    """Longest answer; the rest of a longer one is not read."""
    metrics_url: _Url | None = None
    """Prometheus metrics of the server; `/metrics` of its origin where unset."""
    metrics_names: dict[Literal["running", "queued", "kv_usage"], _MetricName] = Field(
        default_factory=dict
    )
    """What its metrics are called, where it is none of vLLM, SGLang, TGI and llama.cpp."""
    priority: Literal["lower_first", "higher_first"] | None = None
    """How the server reads `priority` of a request: vLLM serves lower ones first, SGLang higher
    ones. None for one that schedules without priorities, and is told none."""
    provider: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] | None = None
    """What spans and metrics call it (``gen_ai.provider.name``); None: by the host of its URL."""

    @property
    def provider_name(self) -> str:
        """The provider, as the GenAI conventions name it; `openai` at a host they don't know."""
        host = urlsplit(self.base_url).hostname or ""
        found = (name for end, name in _PROVIDERS.items() if f".{host}".endswith(f".{end}"))
        return self.provider or next(found, "openai")


class CPUBackendConfig(Declaration):
    """Small models of embeddings and of moderations, run in the worker.

    Both come with the package's extra `cpu`. `model_file` and `tokenizer_file` name another
    sentence-transformers model for embeddings: ONNX with mean pooling, and its `tokenizer.json`.
    """

    type: Literal["cpu"]
    provider_name: ClassVar[str] = "shunter"
    model_file: _File | None = None
    tokenizer_file: _File | None = None
    threads: Annotated[int, Field(strict=True, ge=1, le=1_024)] = 1
    """Requests computed side by side, each by one thread."""

    @model_validator(mode="after")
    def _both_files_or_none(self) -> Self:
        if (self.model_file is None) != (self.tokenizer_file is None):
            message = "must be given together with the other of model_file and tokenizer_file"
            raise cross_field_error(
                "CPUBackendConfig", [(("model_file",), self.model_file, message)]
            )
        return self


Backend = Annotated[
    SimulatedBackendConfig | OpenAIBackendConfig | CPUBackendConfig, Field(discriminator="type")
]


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
