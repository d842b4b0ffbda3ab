"""Records of the policies topic: declarations by version, and each change of what is in force."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict

from topics.wire.codec import decode
from topics.wire.errors import BadRecordError

DeclaredKind = Literal["policy", "fleet"]
ChangeAction = Literal["apply", "rollback", "shadow", "shadow_stop"]

# A change that says more than is understood here must not be followed by halves.
_WHOLE = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Declared:
    """A policy or a fleet. ``text`` is JSON, and so YAML, and complete: it names nothing packaged.

    ``version`` is its digest, ``at`` when it was published first (epoch seconds), ``by`` by whom.
    """

    __pydantic_config__ = _WHOLE

    kind: DeclaredKind
    version: str
    text: str
    at: float
    by: str


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """The versions in force from this change on; ``number`` counts changes from 1.

    If ``policy`` or ``fleet`` is None, each router uses the one it was started with. ``shadow`` is
    the policy that decides beside the live one and is never acted upon.
    """

    __pydantic_config__ = _WHOLE

    number: int
    action: ChangeAction
    at: float
    by: str
    policy: str | None = None
    fleet: str | None = None
    shadow: str | None = None


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A record of the topic: a declaration or a change."""

    __pydantic_config__ = _WHOLE

    declared: Declared | None = None
    change: PolicyChange | None = None


def entry_key(entry: PolicyEntry) -> bytes:
    """Return the key of an entry, by which compaction keeps each version and each change.

    Two concurrent changes may take the same number; both are part of the history.
    """
    if entry.declared is not None:
        return f"{entry.declared.kind}/{entry.declared.version}".encode()
    change = entry.change or PolicyChange(0, "apply", 0.0, "")
    return f"change/{change.number:08d}/{change.at}/{change.by}".encode()


class PolicyLog:
    """All entries of the topic, in the order they were added."""

    def __init__(self) -> None:
        self._declared: dict[tuple[str, str], Declared] = {}
        self._changes: list[PolicyChange] = []

    @property
    def current(self) -> PolicyChange | None:
        """Return the change in force; None if none was ever applied."""
        return self._changes[-1] if self._changes else None

    @property
    def changes(self) -> list[PolicyChange]:
        """Return all changes, the newest last."""
        return list(self._changes)

    @property
    def declared(self) -> Mapping[tuple[str, str], Declared]:
        """Return every declaration by (kind, version)."""
        return self._declared

    def add(self, value: bytes | None) -> None:
        """Add a record; a tombstone is ignored.

        Raises:
            BadRecordError: it can't be read here; a newer Shunter may have written it.
        """
        if value is None:
            return
        entry = decode(PolicyEntry, value)
        if (entry.declared is None) == (entry.change is None):
            message = "holds neither a declaration nor a change, or both"
            raise BadRecordError("validate", "invalid_record", message)
        if entry.declared is not None:
            self._declared[entry.declared.kind, entry.declared.version] = entry.declared
        if entry.change is not None:
            self._changes.append(entry.change)

    def find(self, kind: DeclaredKind, version: str) -> Declared | None:
        """Return a declaration by its version."""
        return self._declared.get((kind, version))

    @property
    def previous(self) -> PolicyChange | None:
        """Return the newest change whose policy or fleet differs from the current one."""
        now = self.current
        return next(
            (
                change
                for change in reversed(self._changes)
                if now is not None and (change.policy, change.fleet) != (now.policy, now.fleet)
            ),
            None,
        )
