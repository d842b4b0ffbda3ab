"""Configurations of a CSV file, and the latencies that the hardware model predicts for them."""

import csv
import io
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from policies.config.hardware import Device, HardwareCatalogue, Model, Precision
from policies.config.rooflines import roofline_of
from policies.config.schema import did_you_mean
from policies.config.serving import KVPrecision
from policies.hardware.closed_loop import Means, closed_loop
from policies.hardware.roofline import MEMORY_UTILIZATION, Roofline
from shunter.console import named, read_input

REQUIRED = (
    "device",
    "model",
    "precision",
    "tensor_parallel",
    "input_tokens",
    "output_tokens",
    "concurrency",
)
OPTIONAL = ("requests", "length_low", "kv_precision", "expert_parallel")
REQUESTS_PER_CLIENT = 10
# Far beyond what a server runs; a mistyped number must not take hours.
DEVICES_MAX, TOKENS_MAX, CLIENTS_MAX, REQUESTS_MAX = 1024, 10_000_000, 65_536, 1_000_000
SEED = 20
# Of a value that is no such thing, so much is repeated to whoever wrote it.
SHOWN_MAX = 40


class UnreadableError(ValueError):
    """A file holds no configurations; the message says why."""


class RowError(ValueError):
    """A configuration can't be predicted; the message says why."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One replica that serves a variant alone, and the clients of its closed loop."""

    device: Device
    model: Model
    precision: Precision
    tensor_parallel: int
    input_tokens: int
    output_tokens: int
    concurrency: int
    requests: int
    length_low: float
    kv_precision: KVPrecision | None

    def lengths(self) -> list[tuple[int, int]]:
        """Return input and output tokens of each request, the same at each call."""
        drawn = random.Random(SEED)  # noqa: S311 - lengths of a simulation
        low_in, low_out = (
            max(1, math.ceil(self.length_low * tokens))
            for tokens in (self.input_tokens, self.output_tokens)
        )
        return [
            (drawn.randint(low_in, self.input_tokens), drawn.randint(low_out, self.output_tokens))
            for _ in range(self.requests)
        ]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, by column; what a row lacks is empty.

    Spaces around names and values, blank lines and a byte order mark don't count, and bytes that
    are no UTF-8 spoil the value that has them alone.

    Raises:
        UnreadableError: there is no such file, it is no CSV, it lacks a column, or has one twice
            that counts.
    """
    try:
        text = read_input(path).decode("utf-8-sig", errors="replace").lstrip()
        with io.StringIO(text, newline="") as file, _fields_of_any_size(text):
            lines = [
                [value.strip() for value in line]
                for line in csv.reader(file, skipinitialspace=True)
            ]
    except (OSError, csv.Error) as error:
        raise UnreadableError(f"{named(path)}: can't be read as CSV: {error}") from error
    header, *rows = lines or [[]]
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise UnreadableError(
            f"{named(path)}: has no column {', '.join(missing)}: the first line names the columns"
        )
    twice = [name for name in (*REQUIRED, *OPTIONAL) if header.count(name) > 1]
    if twice:
        raise UnreadableError(
            f"{named(path)}: has {', '.join(twice)} more than once: leave one column of each name"
        )
    empty = dict.fromkeys(header, "")
    return [empty | dict(zip(header, row, strict=False)) for row in rows if row not in ([], [""])]


@contextmanager
def _fields_of_any_size(text: str) -> Iterator[None]:
    """Let a field be as long as the text: it is one row's error, not the file's."""
    before = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def predictions(
    rows: list[dict[str, str]], catalogue: HardwareCatalogue
) -> Iterator[dict[str, float | str]]:
    """Yield for each row `ttft_ms` and `tpot_ms`, or the `error` that keeps it from having any."""
    for row in rows:
        try:
            found = predict(configuration(row, catalogue))
        except RowError as error:
            yield {"error": str(error)}
        else:
            yield {"ttft_ms": 1000 * found.ttft_s, "tpot_ms": 1000 * found.tpot_s}


def predict(asked: Configuration) -> Means:
    """Return the mean latencies of a configuration. Raises RowError."""
    device, model = asked.device, asked.model
    try:
        roofline = roofline_of(
            device, model, asked.precision, asked.tensor_parallel, asked.kv_precision
        )
        if roofline.kv_capacity_tokens(roofline.weights_bytes) < 1:
            raise RowError(_too_heavy(roofline))
        latency_s = device.serving.first_token_ms / 1000 if device.serving else 0.0
        return closed_loop(roofline, latency_s, asked.lengths(), asked.concurrency)
    except ValueError as error:
        raise RowError(str(error)) from error


def _too_heavy(roofline: Roofline) -> str:
    weights_gb, usable_gb = (
        size / 1e9 for size in (roofline.weights_bytes, MEMORY_UTILIZATION * roofline.memory_bytes)
    )
    return (
        f"the weights take {weights_gb:,.1f} GB of the {usable_gb:,.1f} GB that a server uses of "
        f"this memory: give more devices, or a lower precision"
    )


def configuration(row: Mapping[str, str], catalogue: HardwareCatalogue) -> Configuration:
    """Return the configuration of a row. Raises RowError."""
    device, model = row["device"], row["model"]
    if device not in catalogue.devices:
        raise _unknown("device", device, catalogue.devices)
    if model not in catalogue.models:
        raise _unknown("model", model, catalogue.models)
    concurrency = _count(row, "concurrency", CLIENTS_MAX)
    requests = REQUESTS_PER_CLIENT * concurrency
    if row.get("requests"):
        requests = _count(row, "requests", REQUESTS_MAX)
    if row.get("expert_parallel"):
        # Read, so that nonsense is told; the experts' weights are read in full wherever they lie.
        _count(row, "expert_parallel", DEVICES_MAX)
    return Configuration(
        device=catalogue.devices[device],
        model=catalogue.models[model],
        precision=_precision(row["precision"]),
        tensor_parallel=_count(row, "tensor_parallel", DEVICES_MAX),
        input_tokens=_count(row, "input_tokens", TOKENS_MAX),
        output_tokens=_count(row, "output_tokens", TOKENS_MAX),
        concurrency=concurrency,
        requests=requests,
        length_low=_share(row.get("length_low") or "1"),
        kv_precision=_kv_precision(row.get("kv_precision", "")),
    )


def _precision(text: str) -> Precision:
    known: tuple[Precision, ...] = get_args(Precision)
    for each in known:
        if each == text:
            return each
    raise _unknown("precision", text, known)


def _kv_precision(text: str) -> KVPrecision | None:
    known: tuple[KVPrecision, ...] = get_args(KVPrecision)
    for each in known:
        if each == text:
            return each
    if text:
        shown = text[:SHOWN_MAX]
        raise RowError(f"kv_precision: {shown!r} is unknown; use bf16, fp8, or leave it empty")
    return None


def _unknown(column: str, text: str, known: Iterable[str]) -> RowError:
    shown = text[:SHOWN_MAX]
    return RowError(f"{column}: {shown!r} is unknown; {did_you_mean(shown, known)}")


def _count(row: Mapping[str, str], column: str, most: int) -> int:
    text = row[column]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (1 <= number <= most and number == int(number)):
        raise RowError(f"{column}: {text[:SHOWN_MAX]!r}: give a whole number from 1 to {most:,}")
    return int(number)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise RowError(f"length_low: {text[:SHOWN_MAX]!r}: give a share from 0 to 1")
    return share
