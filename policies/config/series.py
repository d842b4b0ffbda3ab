"""Series: values that change with time, as a fleet declares them for prices and emissions."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from policies.config.curves import MINUTES_OF_DAY, Curve, Steps, Week
from policies.config.hardware import NonNegative
from policies.config.schema import Declaration
from policies.config.serving import ExtendedDeclaration

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
STEPS_MAX = 20_000
"""Half a year of quarters of an hour; a fleet with more would be too long a record."""

_Clock = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$|^24:00$")]


class Hours(Declaration):
    """A value in the same hours of some days; of hours that end before they begin, past midnight.

    `days` are those on which the hours begin; none: all of them.
    """

    days: tuple[Day, ...] = DAYS
    from_: _Clock = Field(alias="from")
    to: _Clock
    value: NonNegative


class Series(ExtendedDeclaration):
    """A value by time: one for always, one by the hours of the week, or one from each time on.

    Exactly one of `value` (with or without `windows`), `steps` and `file` says it. Of windows that
    overlap, the last one in the list counts.
    """

    added: ClassVar[frozenset[str]] = frozenset(
        {"value", "windows", "timezone", "offsets", "steps", "file", "column", "known_ahead_s"}
    )

    value: NonNegative | None = None
    """The value where no window says another."""
    windows: tuple[Hours, ...] = ()
    timezone: str | None = None
    """Time zone of the windows by its IANA name; None: UTC."""
    offsets: tuple[tuple[float, float], ...] = ()
    """From when on (epoch seconds) the zone is so many seconds ahead of UTC. Filled in when the
    file is read, so that no decision depends on a machine's time zone data."""
    steps: Annotated[tuple[tuple[float, NonNegative], ...], Field(max_length=STEPS_MAX)] = ()
    """Times (epoch seconds; a fleet's file may say ISO 8601) and the value from then on; before the
    first, its value holds too."""
    file: str | None = None
    """CSV file with a header and the columns ``at`` and ``value``, beside the fleet's file. Becomes
    `steps` when the fleet's file is read."""
    column: str = "value"
    """The file's column that has the values."""
    known_ahead_s: NonNegative | None = None
    """How far ahead its values are known: a decision takes what comes after as it is then. None:
    all of it, as by contract; 0 for a market whose next price nobody knows."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.file is not None:
            raise ValueError("file: only the reader of a fleet's file can read it")
        if (self.value is None) == (not self.steps):
            raise ValueError("must have exactly one of value, steps and file")
        if self.windows and self.value is None:
            raise ValueError("windows need a value for all other hours")
        if any(b[0] <= a[0] for a, b in pairwise(self.steps)):
            raise ValueError("steps: each time must be after the one before it")
        if self.timezone not in {None, "UTC"} and not self.offsets:
            raise ValueError("timezone: its offsets are filled in by the reader of a fleet's file")
        if any(b[0] <= a[0] for a, b in pairwise(self.offsets)):
            raise ValueError("offsets: each time must be after the one before it")
        return self

    @property
    def moves(self) -> bool:
        """True if its value ever changes."""
        return bool(self.windows) or len(self.steps) > 1

    @property
    def least(self) -> float:
        """The least of its values."""
        found = [each for _, each in self.steps] + [hours.value for hours in self.windows]
        return min(found if self.value is None else [*found, self.value])

    @property
    def curve(self) -> Curve:
        """The same to be asked for values."""
        if self.value is None:
            times, values = zip(*self.steps, strict=True)
            return Steps(times, values, self.known_ahead_s)
        if not self.windows:
            return Steps((0.0,), (self.value,), self.known_ahead_s)
        minutes = _minutes(self.value, self.windows)
        starts = [0, *(m for m in range(1, len(minutes)) if minutes[m] != minutes[m - 1])]
        return Week(
            tuple(60.0 * minute for minute in starts),
            tuple(minutes[minute] for minute in starts),
            self.offsets or ((0.0, 0.0),),
            self.known_ahead_s,
        )

    def seen_from(self, start_s: float) -> Self:
        """Return it with times that count from ``start_s`` (epoch seconds), as a trace's do."""
        zone = self.offsets or (((0.0, 0.0),) if self.windows else ())
        return self.model_copy(
            update={
                "steps": tuple((at - start_s, value) for at, value in self.steps),
                "offsets": tuple((at - start_s, ahead + start_s) for at, ahead in zone),
            }
        )


def _minutes(value: float, windows: Sequence[Hours]) -> list[float]:
    """Return the value in each minute of a week that begins on Monday."""
    week = 7 * MINUTES_OF_DAY
    found = [value] * week
    for hours in windows:
        begin, end = _minute(hours.from_), _minute(hours.to)
        length = end - begin if end > begin else end - begin + MINUTES_OF_DAY
        for day in hours.days:
            first = DAYS.index(day) * MINUTES_OF_DAY + begin
            for minute in range(first, first + length):
                found[minute % week] = hours.value
    return found


def _minute(clock: str) -> int:
    hours, minutes = clock.split(":")
    return 60 * int(hours) + int(minutes)
