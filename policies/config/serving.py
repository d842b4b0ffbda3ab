"""The share of a device that a model server reaches, and its time beside arithmetic and memory.

A device's data sheet says what its units can do; these few constants say what of it a server's
iterations reach. They are fitted to measured servers (`benchmarks/hardware_fit.py`) and shared by
devices, since what they describe is software more than silicon. docs/hardware.md has the form, the
errors, and how a device without measurements comes by them.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from policies.config.schema import Declaration
from policies.hardware.constants import FACTOR_MAX, Factors

Share = Annotated[float, Field(strict=True, gt=0, le=1)]
Micros = Annotated[float, Field(strict=True, ge=0, le=1e6)]
Factor = Annotated[float, Field(strict=True, ge=1 / FACTOR_MAX, le=FACTOR_MAX)]
KVPrecision = Literal["bf16", "fp8"]


class ExtendedDeclaration(Declaration):
    """A declaration that has gained fields; while they keep their defaults it is dumped without.

    So an older file keeps its version, and an older Shunter can read it.
    """

    added: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_what_is_not_used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        for name in self.added:
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if name in dumped and getattr(self, name) == default:
                del dumped[name]
        return dumped


class Times(Declaration):
    """Times of a device over what its declaration says, see `Factors`."""

    compute: Factor = 1.0
    memory: Factor = 1.0
    step: Factor = 1.0
    prompt: Factor = 1.0
    first_token: Factor = 1.0

    @property
    def factors(self) -> Factors:
        """The same as plain numbers."""
        return Factors(self.compute, self.memory, self.step, self.prompt, self.first_token)


class Serving(Declaration):
    """Constants of a server's iterations. Times are microseconds unless their name says more.

    Attributes:
        compute_share: MFU as a share of the best matrix product (`compute_efficiency`).
        experts_share: the further share that a mixture of experts reaches: its matrices are small.
        bandwidth_share: share of the peak bandwidth at which weights and cache are read.
        layer_us: each iteration, for each layer: launches of kernels, what runs between them.
        expert_layer_us: the same besides, for layers with experts: choice, sorting, gathering.
        sequence_layer_us: each decoding sequence, for each layer and iteration.
        prompt_layer_us: each prompt or chunk of one, for each layer.
        all_reduce_us: latency of an exchange between the devices of a replica; two a layer.
        link_share: share of a link's bandwidth that an exchange reaches.
        first_token_ms: beside all iterations: to receive, tokenize, schedule, answer.
        error: standard deviation of ln(actual / predicted) latency on devices that were measured.
        error_datasheet: the same on others whose figures are published.
        error_assumed: the same where figures of the device are assumptions too.
    """

    compute_share: Annotated[float, Field(strict=True, gt=0, le=2)]
    experts_share: Share
    bandwidth_share: Share
    layer_us: Micros
    expert_layer_us: Micros
    sequence_layer_us: Micros
    prompt_layer_us: Micros
    all_reduce_us: Micros
    link_share: Annotated[float, Field(strict=True, gt=0, le=2)]
    first_token_ms: Annotated[float, Field(strict=True, ge=0, le=1e5)]
    error: Share = 0.35
    error_datasheet: Share = 0.45
    error_assumed: Share = 0.6
    source: str = ""
