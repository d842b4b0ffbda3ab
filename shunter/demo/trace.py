"""The packaged trace, and each of its rows as a request.

The trace has lengths, no text: a body holds a short placeholder, and the prompt's length travels as
a hint. Only the simulated backend learns the reply's length (``metadata.simulate``); the router
knows the client's round ``max_tokens`` at most.
"""

import csv
import gzip
import io
from dataclasses import dataclass
from importlib import resources
from typing import Any

TRACE = "workload-open-small.csv.gz"
PLACEHOLDER = "(the trace has the lengths of texts, not the texts)"
MAX_TOKENS_MIN = 64
# The limit of minilm-embedding; five rows are longer, and clients of such models cut their texts.
EMBEDDING_TOKENS_MAX = 512
URLS = {"embedding": "/v1/embeddings", "safety_classification": "/v1/moderations"}
TENANTS = ("shop", "lab", "bank", "clinic")


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of the trace. ``number`` counts its rows from 1."""

    number: int
    arrival_s: float
    task: str
    model: str
    input_tokens: int
    output_tokens: int
    session: str | None
    prefix_tokens: int = 0
    """Leading tokens of the prompt that an earlier row of the session had."""

    @property
    def id(self) -> str:
        """The request's id in the demo."""
        return f"demo-{self.number}"


def load_rows(count: int | None = None) -> list[TraceRow]:
    """Return the packaged trace by arrival, or ``count`` rows spread evenly over it."""
    packed = (resources.files("shunter.data") / TRACE).read_bytes()
    with gzip.open(io.BytesIO(packed), "rt", encoding="utf-8", newline="") as text:
        rows = [_row(number, fields) for number, fields in enumerate(csv.DictReader(text), 1)]
    if count is None or count >= len(rows):
        return rows
    return [rows[index * len(rows) // count] for index in range(count)]


def _row(number: int, fields: dict[str, str]) -> TraceRow:
    input_tokens = int(fields["input_tokens"])
    if fields["task"] == "embedding":
        input_tokens = min(input_tokens, EMBEDDING_TOKENS_MAX)
    return TraceRow(
        number=number,
        arrival_s=float(fields["arrival_s"]),
        task=fields["task"],
        model=fields["model"],
        input_tokens=input_tokens,
        output_tokens=int(fields["output_tokens"]),
        session=fields["session"] or None,
        prefix_tokens=min(int(fields.get("prefix_tokens") or 0), input_tokens),
    )


def request_of(row: TraceRow) -> dict[str, Any]:
    """Return a row as a native request for publication."""
    request: dict[str, Any] = {
        "id": row.id,
        "url": URLS.get(row.task, "/v1/chat/completions"),
        "body": _body(row),
        "task": row.task,
        "tenant": TENANTS[row.number % len(TENANTS)],
        "hints": {"input_tokens": row.input_tokens},
        "metadata": {
            "simulate": {"output_tokens": row.output_tokens, "prefix_tokens": row.prefix_tokens}
        },
    }
    if row.session is not None:
        request["session"] = row.session
    if constraints := _constraints(row):
        request["constraints"] = constraints
    return request


def _body(row: TraceRow) -> dict[str, Any]:
    if row.task in URLS:
        return {"model": row.model, "input": PLACEHOLDER}
    messages = [{"role": "user", "content": PLACEHOLDER}]
    return {"model": row.model, "messages": messages, "max_tokens": max_tokens(row.output_tokens)}


def max_tokens(output_tokens: int) -> int:
    """Return a limit such as a client sets: a power of two, and not tight."""
    return max(MAX_TOKENS_MIN, 1 << max(0, output_tokens - 1).bit_length())


def _constraints(row: TraceRow) -> dict[str, Any]:
    """Return constraints for one row in five, so that there are some to break.

    Each can be met by the packaged fleet, and by its premium GPUs alone.
    """
    match row.number % 25:
        case 3:
            return {"data_class": "regulated"}
        case 8:
            return {"regions": ["us-east"]}
        case 13:
            # gpt-oss-120b is published in MXFP4 only.
            gentle = "mxfp4" if row.model == "gpt-oss-120b" else "fp8"
            return {"precisions": ["bf16", gentle]}
        case 18:
            return {"exclude_pools": ["silicon-us", "cpu-eu"]}
        case 23 if row.task == "synthetic_data":
            return {"labels": {"cooling": "liquid"}}
    return {}
