"""Records: dataclasses that nobody changes, made at the price of those that can be.

A frozen dataclass sets each field through ``object.__setattr__``: 0.84 us for a candidate of ten
fields, 0.14 us without, and a decision among 30 has as many (`python -m benchmarks.budget`). So
type checkers see frozen classes, and refuse whoever assigns to a field; at run time they are plain
ones, with the same equality and hash.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    import dataclasses

    def dataclass(*, frozen: bool, slots: bool) -> object:
        """Return the decorator of a dataclass that only type checkers know to be frozen."""
        return dataclasses.dataclass(slots=slots, unsafe_hash=frozen)


__all__ = ["dataclass"]
