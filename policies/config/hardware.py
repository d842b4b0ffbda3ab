"""Devices and models: the capabilities of hardware and the demands of models.

Both are declared with public figures and no measurements of our own; a pool's actual performance
is learned from its executed work.
"""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from policies.config.schema import cross_field_error, did_you_mean
from policies.config.serving import ExtendedDeclaration, Serving, Share

Kind = Literal["premium_gpu", "inference_silicon", "lpddr_board", "cpu"]
Precision = Literal["fp32", "bf16", "fp16", "fp8", "int8", "fp4", "mxfp4", "int4"]
Operation = Literal["chat", "completions", "embeddings", "moderations"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$")]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Positive = Annotated[float, Field(strict=True, gt=0, le=1e9)]
NonNegative = Annotated[float, Field(strict=True, ge=0, le=1e9)]
Status = Literal["measured", "datasheet", "assumed"]

BYTES_PER_WEIGHT: dict[Precision, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": (4 + 8 / 16) / 8,
    "mxfp4": (4 + 8 / 32) / 8,
    "int4": (4 + 16 / 128) / 8,
}
"""Stored bytes of one weight, the scales of its block included.

Four-bit formats share a scale among a block: NVFP4 (`fp4`) 8 bits among 16 weights, OCP MXFP4
8 bits among 32, group-wise INT4 (GPTQ, AWQ) 16 bits among 128. The scales of 8-bit formats are per
channel or per tensor: too few to count.
"""

COMPUTED_IN: dict[Precision, tuple[Precision, ...]] = {
    "fp32": ("fp32",),
    "bf16": ("bf16",),
    "fp16": ("fp16", "bf16"),
    "fp8": ("fp8",),
    "int8": ("int8",),
    "fp4": ("fp4", "bf16", "fp16"),
    "mxfp4": ("mxfp4", "fp4", "bf16", "fp16"),
    "int4": ("int4", "bf16", "fp16"),
}
"""The rates that a stored precision may compute at, best first; the first a device has is used.

FP16 and BF16 run at one rate and vendors publish them as one. Where a device multiplies no 4-bit
numbers the weights alone are quantised and each is widened to 16 bits in registers on its way to
the multiplier, as the Marlin (INT4) and Triton (MXFP4 on Hopper) kernels do: the bytes of 4 bits
at the rate of 16. An 8-bit precision counts only where the device has a rate for it.
"""

KV_BYTES_PER_VALUE = 2
"""Keys and values as BF16, whatever the precision of the weights."""

PARAMETERS_PER_SQUARE = 13
"""Parameters of a layer that a token touches, over the square of the model's width."""

IDLE_OF_BUSY = 0.15
"""Idle power of a device over `power_w`, where none is declared: an H100 draws 70 to 130 W idle."""
HOST_OF_DEVICE = 0.5
"""Power of a device's share of the host over `power_w`, where none is declared."""
HOST_IDLE_OF_BUSY = 0.6
"""Idle power of a host over that of one that works, where none is declared."""

SPEED_FIELDS = frozenset({"memory_gb", "memory_bandwidth_tb_s", "tflops", "link_gb_s"})
"""Of a device: those whose assumption makes a predicted latency one."""


class Device(ExtendedDeclaration):
    """One accelerator, or one CPU socket with its memory.

    `memory_gb` is in 10^9 bytes. Vendors print some capacities in 2^30 bytes and name both GB;
    reading every printed figure as 10^9 errs by at most 7 %, towards too little memory.
    `usd_per_hour` is for one device with its share of the host. `tflops` are dense peaks by
    precision. `link_gb_s` is the bandwidth to the other devices of a replica, one way. `serving`
    are the constants of its servers, in a file also by the name of packaged ones; without them it
    is a plain roofline. `measured` says which measurements they were held against. `power_w` is
    what the device draws when busy, `host_power_w` its share of the host; what isn't declared is
    assumed by the rules below.
    """

    added: ClassVar[frozenset[str]] = frozenset(
        {"link_gb_s", "serving", "measured", "idle_power_w", "host_power_w", "host_idle_power_w"}
    )

    kind: Kind
    memory_gb: Positive
    memory_bandwidth_tb_s: Positive
    tflops: dict[Precision, Positive] = Field(min_length=1)
    usd_per_hour: NonNegative
    power_w: Positive | None = None
    idle_power_w: NonNegative | None = None
    host_power_w: NonNegative | None = None
    host_idle_power_w: NonNegative | None = None
    compute_efficiency: Share = 0.6
    """Share of the peak that large matrix products reach, where none was measured."""
    bandwidth_efficiency: Share = 0.61
    """Share of peak bandwidth in decode: measured on A100 and H100 with vLLM 0.28 (ridgepoint).
    With `serving`, that one's share counts."""
    link_gb_s: Positive | None = None
    serving: Serving | None = None
    measured: str = ""
    source: str = ""
    assumptions: dict[str, str] = Field(default_factory=dict)
    """By field: what was assumed where nobody published a figure."""

    @model_validator(mode="after")
    def _assumptions_name_fields(self) -> Self:
        known = set(Device.model_fields)
        unknown = [name for name in self.assumptions if name.partition(".")[0] not in known]
        if unknown:
            raise cross_field_error(
                "Device",
                [
                    (("assumptions", name), name, f"no such field; {did_you_mean(name, known)}")
                    for name in unknown
                ],
            )
        return self

    @property
    def status(self) -> Status:
        """True if servers on it were measured, or its figures are published ones, or guesses."""
        if self.measured:
            return "measured"
        assumed = {name.partition(".")[0] for name in self.assumptions}
        return "assumed" if assumed & SPEED_FIELDS else "datasheet"

    @property
    def is_assumed(self) -> bool:
        """True if latencies on it rest on what nobody measured there."""
        return not self.measured

    @property
    def error(self) -> float:
        """Standard deviation of ln(actual / predicted) latency; 0 where no constants say so."""
        serving = self.serving
        if serving is None:
            return 0.0
        if self.status == "measured":
            return serving.error
        return serving.error_assumed if self.status == "assumed" else serving.error_datasheet

    @property
    def busy_w(self) -> float | None:
        """Watts of the device and its share of the host while it works; None where unknown."""
        if self.power_w is None:
            return None
        return self.power_w + self._host_w(self.power_w)

    @property
    def idle_w(self) -> float | None:
        """The same while it has nothing to do."""
        if self.power_w is None:
            return None
        idle_w = self.idle_power_w
        if idle_w is None:
            idle_w = IDLE_OF_BUSY * self.power_w
        host_idle_w = self.host_idle_power_w
        if host_idle_w is None:
            host_idle_w = HOST_IDLE_OF_BUSY * self._host_w(self.power_w)
        return idle_w + host_idle_w

    def _host_w(self, power_w: float) -> float:
        if self.host_power_w is not None:
            return self.host_power_w
        # A CPU is the host.
        return 0.0 if self.kind == "cpu" else HOST_OF_DEVICE * power_w

    @property
    def memory_bytes(self) -> float:
        """`memory_gb` in bytes."""
        return self.memory_gb * 1e9

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Peak memory bandwidth of the device."""
        return self.memory_bandwidth_tb_s * 1e12

    def computes_in(self, precision: Precision) -> Precision | None:
        """Return the precision whose rate `precision` runs at (`COMPUTED_IN`); None: it can't."""
        return next((each for each in COMPUTED_IN[precision] if each in self.tflops), None)

    def flops(self, precision: Precision) -> float:
        """Return the peak dense FLOP/s of weights stored at `precision`.

        Raises:
            ValueError: the device can't compute with such weights.
        """
        computed_in = self.computes_in(precision)
        if computed_in is None:
            rates = ", ".join(self.tflops)
            raise ValueError(f"no rate for {precision} among {rates}; declare tflops.{precision}")
        return self.tflops[computed_in] * 1e12


class Model(ExtendedDeclaration):
    """A model as it was published, independent of the precision it is served at.

    The size of the KV cache follows from `kv_heads` and `head_dim`; where it doesn't (latent
    attention, sliding windows, encoders) give `kv_bytes_per_token`. `weights_gb` holds published
    checkpoint sizes, in 10^9 bytes by precision, where they differ from parameters x bytes.
    `hidden_size` is the width of a token's activations; `width` estimates it if not declared.
    """

    added: ClassVar[frozenset[str]] = frozenset({"hidden_size", "status"})

    parameters_b: Positive
    active_declared_b: Positive | None = Field(default=None, alias="active_parameters_b")
    layers: Annotated[int, Field(strict=True, ge=1, le=10_000)]
    query_heads: Count | None = None
    kv_heads: Count | None = None
    head_dim: Count | None = None
    hidden_size: Count | None = None
    context_tokens: Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
    kv_declared_bytes: NonNegative | None = Field(default=None, alias="kv_bytes_per_token")
    weights_gb: dict[Precision, Positive] = Field(default_factory=dict)
    operations: tuple[Operation, ...] = Field(default=("chat", "completions"), min_length=1)
    source: str = ""
    status: Status = "datasheet"
    tokenizer_file: Annotated[str, Field(min_length=1, max_length=4_096)] | None = None
    """The model's own `tokenizer.json`, by which a router counts the tokens of prompts."""

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        found: list[tuple[tuple[str | int, ...], object, str]] = []
        if self.active_parameters_b > self.parameters_b:
            message = f"must be at most parameters_b, {self.parameters_b:g}"
            found.append((("active_parameters_b",), self.active_declared_b, message))
        if self.kv_declared_bytes is None and (self.kv_heads is None or self.head_dim is None):
            message = "required unless both kv_heads and head_dim are given"
            found.append((("kv_bytes_per_token",), None, message))
        if found:
            raise cross_field_error("Model", found)
        return self

    @property
    def has_experts(self) -> bool:
        """True for a mixture of experts: a token touches a part of the parameters."""
        return self.active_parameters_b < self.parameters_b

    @property
    def width(self) -> int:
        """Values that a token's activations have between two layers.

        If not declared: a layer has about 13 of their squares in parameters that a token touches.
        Of the packaged models that is 0.95 to 1.36 times the width.
        """
        if self.hidden_size is not None:
            return self.hidden_size
        return round(math.sqrt(self.active_parameters / (PARAMETERS_PER_SQUARE * self.layers)))

    @property
    def active_parameters_b(self) -> float:
        """Parameters that one token touches, in 10^9: all, except for a mixture of experts."""
        return self.parameters_b if self.active_declared_b is None else self.active_declared_b

    @property
    def active_parameters(self) -> float:
        """`active_parameters_b` as a number of parameters."""
        return self.active_parameters_b * 1e9

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache of one token: 2 x kv_heads x head_dim x layers x bytes per value."""
        if self.kv_declared_bytes is not None:
            return self.kv_declared_bytes
        heads, width = self.kv_heads or 0, self.head_dim or 0
        return float(2 * heads * width * self.layers * KV_BYTES_PER_VALUE)

    @property
    def attention_width(self) -> int:
        """Query heads x head width; 0 if not declared, which leaves attention FLOPs out."""
        return (self.query_heads or 0) * (self.head_dim or 0)

    def weights_bytes(self, precision: Precision) -> float:
        """Return the bytes of all stored weights at `precision`."""
        if precision in self.weights_gb:
            return self.weights_gb[precision] * 1e9
        return self.parameters_b * 1e9 * BYTES_PER_WEIGHT[precision]

    def active_weights_bytes(self, precision: Precision) -> float:
        """Return the bytes of the weights that one token touches at `precision`."""
        return self.weights_bytes(precision) * (self.active_parameters_b / self.parameters_b)


class HardwareCatalogue(ExtendedDeclaration):
    """Devices and models by name, and named constants of servers that devices may refer to."""

    added: ClassVar[frozenset[str]] = frozenset({"serving"})

    devices: dict[Name, Device] = Field(default_factory=dict)
    models: dict[Name, Model] = Field(default_factory=dict)
    serving: dict[Name, Serving] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _constants_by_name(cls, given: Any) -> Any:
        """Put constants in place of their names, so that what a device says stands alone."""
        if not isinstance(given, dict) or not isinstance(given.get("devices"), dict):
            return given
        known = given.get("serving")
        known = known if isinstance(known, dict) else {}
        devices, found = dict(given["devices"]), []
        for name, device in devices.items():
            named = device.get("serving") if isinstance(device, dict) else None
            if isinstance(named, str):
                if named in known:
                    devices[name] = {**device, "serving": known[named]}
                else:
                    message = f"unknown constants; {did_you_mean(named, known)}"
                    found.append((("devices", name, "serving"), named, message))
        if found:
            raise cross_field_error(cls.__name__, found)
        return {**given, "devices": devices}
