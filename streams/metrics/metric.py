"""One metric: its names in OpenTelemetry and in Prometheus, its unit and its labels."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Teller = Literal["router", "worker", "both", "log"]

_SUFFIXES = {"s": "_seconds", "By": "_bytes"}

_GEN_AI_OPERATIONS = {"completions": "text_completion"}


def gen_ai_operation(operation: str) -> str:
    """Return an operation as the GenAI conventions name it; ours where they have no name."""
    return _GEN_AI_OPERATIONS.get(operation, operation)


# Compared by identity, which makes them fast as keys.
@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric. ``unit`` is UCUM as OpenTelemetry writes it; ``bounds`` are of a histogram."""

    name: str
    kind: Kind
    unit: str
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    told_by: Teller = "both"

    @property
    def family(self) -> str:
        """The name in Prometheus' format, without a counter's or a histogram's suffix."""
        name, suffix = self.name.replace(".", "_"), _SUFFIXES.get(self.unit, "")
        return name if name.endswith(suffix) else name + suffix

    @property
    def series(self) -> tuple[str, ...]:
        """The names that a query in Prometheus may use."""
        if self.kind == "counter":
            return (f"{self.family}_total",)
        if self.kind == "histogram":
            return tuple(f"{self.family}_{part}" for part in ("bucket", "count", "sum"))
        return (self.family,)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The labels as OpenTelemetry names them."""
        return tuple(_ATTRIBUTES.get(label, label) for label in self.labels)


_ATTRIBUTES = {
    "gen_ai_operation_name": "gen_ai.operation.name",
    "gen_ai_provider_name": "gen_ai.provider.name",
    "gen_ai_request_model": "gen_ai.request.model",
    "gen_ai_token_type": "gen_ai.token.type",
    "messaging_consumer_group_name": "messaging.consumer.group.name",
    "messaging_destination_name": "messaging.destination.name",
}
