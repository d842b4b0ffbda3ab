"""A trail held against the public log: each root logged in order, each entry in the trail.

Nothing is believed but the policy's keys. All entries are read, and the tree is made of them anew,
so that tiles need not be believed either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shunter.audit.findings import Kind
from shunter.public_log.store import LogReader
from shunter.public_log.tree import read_entries
from topics import BadRecordError
from topics.iso_time import iso_time
from topics.public_log.entries import LoggedRoot, entry_of, parse_entry
from topics.public_log.notes import Checkpoint, NoteError, parse_checkpoint, parse_note
from topics.public_log.policy import CosignedCheckpoint, TrustPolicy
from topics.public_log.tiles import EMPTY_ROOT, TILE_WIDTH
from topics.signing.merkle import leaf_hash, tree_hash

# Between a root's own time and the cosignature of a checkpoint with it; beyond it one of them lies,
# or the log has stood still, which is an alert (ShunterEvidenceLogLags).
LAG_S_MAX = 900.0
CLOCKS_APART_S = 300.0

TellProblem = Callable[[Kind, str, str], object]
"""Takes the kind of a problem, its place and what is wrong."""


@dataclass(slots=True)
class LogFacts:
    """Facts that a check has seen. Times are epoch seconds."""

    size: int = 0
    cosigned_at: int | None = None
    cosigners: Sequence[str] = ()
    logged: int = 0
    fresh: int = 0
    gone: int = 0
    young: int = 0
    before_log: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Kept:
    """Of one chain: the sequences that the trail has, and the last logged one's place."""

    first: int
    last: int
    last_sequence: int = -1
    last_index: int = -1
    logged_from: int | None = None


class LogCheck:
    """Reads a log, takes the roots of a trail, and tells what does not fit.

    Read first, then add roots: what is logged has been committed before it, so that each entry has
    its root in a trail that is read later.
    """

    def __init__(self, reader: LogReader, policy: TrustPolicy, tell: TellProblem) -> None:
        self.facts = LogFacts()
        self.checkpoint: bytes | None = None
        self._reader = reader
        self._policy = policy
        self._tell = tell
        self._leaves: list[bytes] = []
        self._roots: list[LoggedRoot | None] = []
        self._places: dict[bytes, int] = {}
        self._seen = bytearray()
        self._head: CosignedCheckpoint | None = None
        self._kept: Checkpoint | None = None
        self._kept_at: int | None = None
        self._chains: dict[str, _Kept] = {}
        self._unlogged: list[tuple[str, LoggedRoot]] = []

    @property
    def has_kept(self) -> bool:
        """True if the log was held against a checkpoint from before."""
        return self._kept is not None

    def read(self, kept: bytes | None) -> bool:
        """Read the whole log; return whether its entries can be believed.

        Args:
            kept: a checkpoint that the auditor has from before.

        Raises:
            LogStoreError: the log can't be read.
        """
        try:
            data = self._reader.read("checkpoint") or b""
            self._head = self._policy.check(data)
        except NoteError as error:
            self._tell("log_checkpoint", self._reader.url, str(error))
            return False
        head, facts = self._head, self.facts
        facts.size, facts.cosigned_at = head.checkpoint.size, head.is_first_at
        facts.cosigners = sorted(head.cosigned)
        if not self._read_entries(head.checkpoint) or not self._extends(kept, head.checkpoint):
            return False
        self.checkpoint = data
        return True

    def add_root(self, value: bytes | None, where: str) -> None:
        """Take a record of the trail's roots, in the order of its partition."""
        entry = entry_of(value)
        if entry is None:
            # The trail's own check tells of it.
            return
        root = parse_entry(entry)
        statement = root.statement
        chain = self._chains.setdefault(
            statement.chain, _Kept(statement.sequence, statement.sequence)
        )
        chain.first = min(chain.first, statement.sequence)
        chain.last = max(chain.last, statement.sequence)
        index = self._places.get(leaf_hash(entry))
        if index is None:
            self._unlogged.append((where, root))
            return
        self.facts.logged += not self._seen[index]
        self._seen[index] = 1
        if chain.logged_from is None or statement.sequence < chain.logged_from:
            chain.logged_from = statement.sequence
        if statement.sequence > chain.last_sequence:
            if index < chain.last_index:
                told = f"{_name(root)} stands at {index} of the log, before its predecessor"
                self._tell("log_order", where, told)
            chain.last_sequence, chain.last_index = statement.sequence, index

    def finish(
        self,
        now: float,
        retention_s: float | None,
        *,
        behind_s: float = LAG_S_MAX,
        age_s_max: float | None = None,
    ) -> LogFacts:
        """Tell what is in one of the two alone; every root has been added.

        Args:
            now: when the log was read, epoch seconds.
            retention_s: how long the trail is kept, as its owner has stated; None for ever.
            behind_s: how far the trail may be behind the log. Topics are not at all: what is
                logged was committed before, and they are read later.
            age_s_max: how old a quorum's cosignature may be; any age if None.
        """
        at = None if self._head is None else self._head.is_first_at
        if at is not None and age_s_max is not None and now - at > age_s_max:
            told = f"last cosigned {iso_time(at)}: what came since then could be missing"
            said = f"{told} (--log-age takes an older one)"
            self._tell("log_stale", self._reader.url, said)
        for where, unlogged in self._unlogged:
            self._judge_unlogged(where, unlogged)
        for index, root in enumerate(self._roots):
            if root is None:
                self._tell("log_entry", f"entry {index}", "no root of evidence")
                continue
            self._judge_time(index, root)
            if not self._seen[index]:
                self._judge_gone(index, root, now, (retention_s, behind_s))
        facts = self.facts
        for count, told in (
            (facts.fresh, "roots are newer than the log's checkpoint"),
            (facts.young, "entries of the log are of the last 15 min, and not in the trail yet"),
            (facts.gone, "entries of the log are older than what is kept here"),
            (
                facts.before_log,
                "roots are older than the log, which says nothing of their times",
            ),
        ):
            if count:
                facts.notes.append(f"{count} {told}")
        return facts

    def _read_entries(self, head: Checkpoint) -> bool:
        repeats: list[int] = []
        for index in range(-(-head.size // TILE_WIDTH)):
            try:
                entries = read_entries(self._reader, head.size, index)
            except NoteError as error:
                self._tell("log_altered", self._reader.url, str(error))
                return False
            for entry in entries:
                leaf = leaf_hash(entry)
                if leaf in self._places:
                    told = f"the same root as at {self._places[leaf]}: it was logged twice"
                    self._tell("log_repeats", f"entry {len(self._leaves)}", told)
                    repeats.append(len(self._leaves))
                self._places.setdefault(leaf, len(self._leaves))
                self._leaves.append(leaf)
                self._roots.append(_parsed(entry))
        self._seen = bytearray(len(self._leaves))
        for index in repeats:
            self._seen[index] = 1
        if self._root_of(head.size) != head.root:
            told = "its entries are not those that the checkpoint was signed over"
            self._tell("log_altered", self._reader.url, told)
            return False
        return True

    def _extends(self, kept: bytes | None, head: Checkpoint) -> bool:
        """Hold the log against the checkpoint that the auditor has from before."""
        if kept is None:
            return True
        note = parse_note(kept)
        before = parse_checkpoint(note.text)
        if before.origin != head.origin:
            told = f"it is {head.origin!r:.80}, the kept checkpoint is of {before.origin!r:.80}"
            self._tell("log_fork", self._reader.url, told)
        elif before.size > head.size:
            told = f"it has {head.size} entries, and had {before.size}"
            self._tell("log_truncated", self._reader.url, told)
        elif self._root_of(before.size) != before.root:
            told = f"its first {before.size} entries are others than those seen before"
            self._tell("log_fork", self._reader.url, told)
        else:
            self._kept = before
            self._kept_at = min(self._policy.cosigners(note).values(), default=None)
            return True
        return False

    def _root_of(self, size: int) -> bytes:
        return tree_hash(self._leaves[:size]) if size else EMPTY_ROOT

    def _judge_unlogged(self, where: str, root: LoggedRoot) -> None:
        statement, chain = root.statement, self._chains[root.statement.chain]
        begin = self._roots[0].statement.at if self._roots and self._roots[0] else None
        before_log = begin is not None and statement.at < begin
        if chain.logged_from is not None and statement.sequence < chain.last_sequence:
            if statement.sequence < chain.logged_from:
                # The chain's own hashes bind it to the root that is logged.
                self.facts.before_log += 1
                return
        elif chain.logged_from is None and before_log:
            self.facts.before_log += 1
            return
        else:
            at = None if self._head is None else self._head.is_first_at
            if at is None or statement.at >= at - LAG_S_MAX:
                self.facts.fresh += 1
                return
        self._tell("unlogged", where, f"{_name(root)} is not in the log")

    def _judge_time(self, index: int, root: LoggedRoot) -> None:
        kept, at = self._kept, self._kept_at
        is_later = kept is not None and index >= kept.size
        if is_later and at is not None and root.statement.at < at - LAG_S_MAX:
            told = f"{_name(root)} says a time long before the kept checkpoint, and came after it"
            self._tell("back_dated", f"entry {index}", told)
        until = None if self._head is None else self._head.is_first_at
        if until is not None and root.statement.at > until + CLOCKS_APART_S:
            told = f"{_name(root)} says a time after the witnesses had seen it"
            self._tell("back_dated", f"entry {index}", told)

    def _judge_gone(
        self, index: int, root: LoggedRoot, now: float, terms: tuple[float | None, float]
    ) -> None:
        retention_s, behind_s = terms
        statement, chain = root.statement, self._chains.get(root.statement.chain)
        is_front = chain is None or statement.sequence < chain.first
        if is_front and retention_s is not None and statement.at < now - retention_s:
            self.facts.gone += 1
            return
        # An archive is some minutes behind.
        is_tail = chain is None or statement.sequence > chain.last
        if is_tail and behind_s and now - behind_s <= statement.at <= now + CLOCKS_APART_S:
            self.facts.young += 1
            return
        why = "" if retention_s is None else ", and is not so old that it may be gone"
        self._tell("unkept", f"entry {index}", f"{_name(root)} is not in the trail{why}")


def _parsed(entry: bytes) -> LoggedRoot | None:
    try:
        return parse_entry(entry)
    except BadRecordError:
        return None


def _name(root: LoggedRoot) -> str:
    return f"{root.statement.chain}#{root.statement.sequence}"
