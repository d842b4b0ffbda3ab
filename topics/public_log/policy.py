"""Trust policies (c2sp.org/tlog-policy): which logs, which witnesses, and how many of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from topics.public_log.notes import (
    COSIGNATURE_V1,
    ED25519,
    Checkpoint,
    NoteError,
    SignedNote,
    VerifierKey,
    cosigned_at,
    is_signed_by,
    parse_checkpoint,
    parse_note,
    parse_vkey,
)

POLICY_BYTES_MAX = 256 * 1024
NONE = "none"


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness; ``url`` is its submission prefix, None where nobody has to reach it."""

    key: VerifierKey
    url: str | None


@dataclass(frozen=True, slots=True)
class WitnessGroup:
    """Names of which so many have to have cosigned."""

    needed: int
    members: Sequence[str]


@dataclass(frozen=True, slots=True)
class CosignedCheckpoint:
    """A checkpoint that a policy accepts, and when each of its witnesses cosigned it."""

    checkpoint: Checkpoint
    cosigned: Mapping[str, int]
    is_first_at: int | None
    """The moment, epoch seconds, by which a quorum had cosigned; None where none is needed."""


@dataclass(slots=True)
class TrustPolicy:
    """A policy file, as ``parse_policy`` reads it."""

    logs: list[VerifierKey] = field(default_factory=list)
    witnesses: dict[str, Witness] = field(default_factory=dict)
    groups: dict[str, WitnessGroup] = field(default_factory=dict)
    quorum: str = ""

    def is_met(self, cosigners: Collection[str]) -> bool:
        """Return whether these witnesses, by their names in the file, are a quorum."""
        return self._has(self.quorum, cosigners)

    def cosigners(self, note: SignedNote) -> dict[str, int]:
        """Return when each known witness cosigned a note, by the witness's name in the file.

        Raises:
            NoteError: one that bears a witness's name and id does not hold.
        """
        found = {}
        for name, witness in self.witnesses.items():
            at = cosigned_at(note, witness.key)
            if at is not None:
                found[name] = at
        return found

    def check(self, data: bytes) -> CosignedCheckpoint:
        """Return the checkpoint of a note that a known log and a quorum of witnesses have signed.

        Raises:
            NoteError: it is none; the message says what is missing.
        """
        note = parse_note(data)
        checkpoint = parse_checkpoint(note.text)
        if not any(key.name == checkpoint.origin and is_signed_by(note, key) for key in self.logs):
            raise NoteError(f"no log of the policy has signed for {checkpoint.origin!r:.80}")
        cosigned = self.cosigners(note)
        if not self.is_met(cosigned):
            told = ", ".join(sorted(cosigned)) or "none"
            raise NoteError(f"no quorum of witnesses ({self.quorum}): cosigned by {told}")
        return CosignedCheckpoint(checkpoint, cosigned, self._quorum_at(cosigned))

    def _quorum_at(self, cosigned: Mapping[str, int]) -> int | None:
        if self.quorum == NONE:
            return None
        for at in sorted(set(cosigned.values())):
            if self.is_met({name for name, told in cosigned.items() if told <= at}):
                return at
        return None

    def _has(self, name: str, cosigners: Collection[str]) -> bool:
        if name == NONE:
            return True
        if name in self.witnesses:
            return name in cosigners
        group = self.groups[name]
        return sum(self._has(member, cosigners) for member in group.members) >= group.needed


def parse_policy(data: bytes) -> TrustPolicy:
    """Return the policy of a file.

    Raises:
        NoteError: it is none; the message names the line.
    """
    if len(data) > POLICY_BYTES_MAX:
        raise NoteError(f"a policy of {len(data)} bytes; {POLICY_BYTES_MAX} are read")
    if any((byte < 0x20 and byte not in {0x09, 0x0A}) or byte == 0x7F for byte in data):
        raise NoteError("a policy has no control characters but tab and newline")
    policy, reading = TrustPolicy(), _Reading()
    # Names are opaque: bytes that are no UTF-8 survive.
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
        words = line.replace("\t", " ").split(" ")
        words = [word for word in words if word]
        if not words or words[0].startswith("#"):
            continue
        try:
            reading.take(policy, words)
        except NoteError as error:
            raise NoteError(f"line {number}: {error}") from error
    if not policy.quorum:
        raise NoteError("no quorum line; `quorum none` asks for no witness")
    return policy


@dataclass(slots=True)
class _Reading:
    """Names that lines before have used: keys, and members of groups, each of which counts once."""

    keys: set[bytes] = field(default_factory=set)
    members: set[str] = field(default_factory=set)

    def take(self, policy: TrustPolicy, words: Sequence[str]) -> None:
        match list(words):
            case ["log", vkey] | ["log", vkey, _]:
                policy.logs.append(self._new(parse_vkey(vkey, ED25519)))
            case ["witness", name, vkey, *rest] if len(rest) < 2:
                self._free(policy, name)
                key = self._new(parse_vkey(vkey, COSIGNATURE_V1))
                policy.witnesses[name] = Witness(key, rest[0] if rest else None)
            case ["group", name, needed, *members] if members:
                self._free(policy, name)
                policy.groups[name] = self._group(policy, needed, members)
            case ["quorum", name]:
                if policy.quorum:
                    raise NoteError("a second quorum")
                if name != NONE:
                    _known(policy, name)
                policy.quorum = name
            case _:
                raise NoteError(f"neither log, witness, group nor quorum: {' '.join(words)!r:.80}")

    def _group(self, policy: TrustPolicy, needed: str, members: Sequence[str]) -> WitnessGroup:
        for member in members:
            _known(policy, member)
            if member in self.members:
                raise NoteError(f"{member!r:.60} is a member already: each counts once")
            self.members.add(member)
        words = {"all": len(members), "any": 1}
        count = words.get(needed, int(needed) if needed.isascii() and needed.isdecimal() else 0)
        if not 1 <= count <= len(members):
            raise NoteError(f"{needed!r:.20} of {len(members)}: a count from 1 on, `any` or `all`")
        return WitnessGroup(count, tuple(members))

    def _new(self, key: VerifierKey) -> VerifierKey:
        if key.public in self.keys:
            raise NoteError(f"the key of {key.name} stands there twice")
        self.keys.add(key.public)
        return key

    @staticmethod
    def _free(policy: TrustPolicy, name: str) -> None:
        if name == NONE or name in policy.witnesses or name in policy.groups:
            raise NoteError(f"the name {name!r:.60} is taken")


def _known(policy: TrustPolicy, name: str) -> None:
    if name not in policy.witnesses and name not in policy.groups:
        raise NoteError(f"{name!r:.60} is no witness and no group of a line before")
