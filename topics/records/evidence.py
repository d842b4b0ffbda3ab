"""Evidence: one record per step of a request, written in the transaction of its effect."""

from typing import Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from topics.records.decision_reading import with_names
from topics.records.decision_rows import SCHEMA
from topics.records.footprint import Footprint
from topics.records.frozen import dataclass
from topics.records.money import Reservation, Settlement, Spent
from topics.records.placement import Batch, Candidate, Envelope, Placement
from topics.records.profile import Fallback, Profile, Tag
from topics.records.quality import Comparison, VariantQuality
from topics.records.quote import QuoteOffer
from topics.records.quote_terms import Charge
from topics.records.result import Status, Usage

Step = Literal[
    "placed",
    "held",
    "released",
    "executed",
    "fell_back",
    "failed",
    "expired",
    "rejected",
    "duplicate",
    "cancel_requested",
    "cancelled",
    "dead_lettered",
    "recovered",
    "drifted",
    "as_reference",
    "quoted",
]

ENDS: dict[str, Status] = {
    "executed": "completed",
    "failed": "failed",
    "expired": "expired",
    "rejected": "rejected",
    "cancelled": "cancelled",
}
"""The steps that end a request, and the status of its result, in the same transaction."""


@dataclass(frozen=True, slots=True)
class Source:
    """The record that a step consumed."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Why and how long a request waited. ``slack_s`` is the time left before its last start."""

    group: str
    reason: str
    held_s: float
    slack_s: float


@dataclass(frozen=True, slots=True)
class Host:
    """Description of a worker's machine; a value is None if unknown."""

    name: str
    system: str
    machine: str
    cpu: str | None = None
    cpus: int | None = None
    memory_bytes: int | None = None
    accelerators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDigest:
    """HMAC-SHA-256 of a body as canonical JSON, in hexadecimal, and the id of the tenant's salt.

    ``whole`` is the digest over all parts of a request (``topics.signing.request_parts``), in
    base64; None of an answer, and in what earlier versions wrote.
    """

    salt: str
    hmac: str
    whole: str | None = None


@dataclass(frozen=True, slots=True)
class Shadow:
    """The decision of a second policy on a request; it is never acted upon.

    ``cost_usd`` and ``chance`` are those of its own choice, None if it would not have served.
    """

    policy_version: str
    action: Literal["place", "hold", "reject", "expire"]
    reason: str
    pool: str | None = None
    model_variant: str | None = None
    cost_usd: float | None = None
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """One step. ``at`` is epoch seconds; ``writer`` is the instance that wrote it.

    On the topic a decision may stand in rows (``topics.records.evidence_bytes``), which are read
    back into these fields.
    """

    request_id: str
    step: Step
    at: float
    writer: str
    source: Source
    tenant: str | None = None
    task: str | None = None
    model: str | None = None
    attempt: int = 1
    trace_id: str | None = None
    policy_version: str | None = None
    fleet_version: str | None = None
    view_version: int | None = None
    tags: dict[str, Tag] | None = None
    profile: Profile | None = None
    """What the decision was made on, of a step that decides."""
    inputs: Any = None
    """And the state of fleet and hold that it was made in; see ``policies.placement.inputs``."""
    decided_with: str | None = None
    """Of a decision on several at once, the request whose evidence has what it was made on."""
    candidates: tuple[Candidate, ...] = ()
    """Of a decision just made a sequence that makes them when they are asked for."""
    shadow: Shadow | None = None
    """Of a decision on a request, where a second policy decides beside the one in force."""
    placement: Placement | None = None
    promised: Envelope | None = None
    held_promise: Envelope | None = None
    """Of a request that was held, what it was promised then."""
    got: Envelope | None = None
    spent: Spent | None = None
    """What its tries in this step cost that gave no answer."""
    reserved: Reservation | None = None
    """Of a request that was accepted, what its budgets keep for it."""
    settled: Settlement | None = None
    """Of its end, what it used of them."""
    usage: Usage | None = None
    batch: Batch | None = None
    hold: Hold | None = None
    fallback: Fallback | None = None
    host: Host | None = None
    model_digest: str | None = None
    """The model server's name of the executed model, if reported."""
    request_digest: TextDigest | None = None
    response_digest: TextDigest | None = None
    assumed: bool = False
    """Whether figures of the placement rest on a device of which no servers were measured."""
    energy_wh: float | None = None
    """Watt hours of an executed request: its device time at busy power, host included."""
    footprint: Footprint | None = None
    """Prices of the hour, energy and emissions, where the fleet declares what moves with time:
    of a decision what is expected, of an executed request what it took."""
    comparison: Comparison | None = None
    """Of a second run that was executed, how its answer differs from the first one's."""
    variant_quality: VariantQuality | None = None
    """Of a new verdict on a variant, the test that led to it."""
    offers: tuple[QuoteOffer, ...] = ()
    """Of a question that was answered, the menu; what accepts an offer is left out."""
    charge: Charge | None = None
    """Of a request that took a quote, what was quoted, what it cost and what it pays."""
    reason: str | None = None
    message: str | None = None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of either form, with names or in rows."""
        return core_schema.no_info_before_validator_function(with_names, handler(source))

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema for a document, with the member that holds a decision's rows."""
        found = handler(schema)
        handler.resolve_ref_schema(found)["properties"]["decision"] = {
            "type": "object",
            "description": "A decision in rows, as docs/evidence.md specifies them",
            "properties": {"schema": {"const": SCHEMA}},
            "required": ["schema"],
        }
        return found

    @property
    def batch_id(self) -> str | None:
        """Return the id of the batch, if the step has one."""
        return None if self.batch is None else self.batch.id
