"""Chains of roots: signatures, order, gaps, forks, and the tail."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from shunter.audit.findings import Findings
from shunter.audit.keyring import KeyProblem, Keyring
from shunter.audit.terms import CLOCKS_APART_S_MAX, Terms
from topics import ChainHead, Root
from topics.iso_time import iso_time
from topics.signing.merkle import tree_hash
from topics.signing.signed_root import is_signed, leaves_of

# By the name of a chain: a head that an auditor has kept, and the name of its file.
Witnessed = Mapping[str, tuple[ChainHead, str]]


@dataclass(frozen=True, slots=True)
class PlacedRoot:
    """A root, its position, and when the broker took it (epoch seconds).

    ``order`` is its place among those of its partition.
    """

    root: Root
    where: str
    taken_at: float
    digest: str
    partition: int
    order: int

    @property
    def latest(self) -> float:
        """The later of the writer's time and the broker's."""
        return max(self.root.statement.at, self.taken_at)

    @property
    def earliest(self) -> float:
        """The earlier of the two."""
        return min(self.root.statement.at, self.taken_at)

    @property
    def name(self) -> str:
        """The chain and the position in it."""
        return f"{self.root.statement.chain}#{self.root.statement.sequence}"


@dataclass(slots=True)
class Chain:
    """The roots found of one chain, in order, and their leaves."""

    name: str
    roots: list[PlacedRoot] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """The number of leaves before each root."""

    @property
    def head(self) -> ChainHead:
        """The last root found."""
        last = self.roots[-1]
        statement = last.root.statement
        return ChainHead(statement.sequence, last.digest, statement.at)


def link(
    roots: Iterable[PlacedRoot],
    keyring: Keyring,
    witnessed: Witnessed,
    terms: Terms,
    findings: Findings,
) -> Iterator[Chain]:
    """Yield each chain with its valid roots; faults go to the findings.

    Args:
        roots: all of them.
        keyring: the keys.
        witnessed: the heads that an auditor has kept.
        terms: what may be gone.
        findings: to add to.
    """
    by_chain: dict[str, list[PlacedRoot]] = {}
    for placed in roots:
        findings.roots += 1
        by_chain.setdefault(placed.root.statement.chain, []).append(placed)
    for name in sorted(by_chain):
        chain = Chain(name)
        _check_order(by_chain[name], findings)
        for placed in sorted(by_chain[name], key=lambda p: p.root.statement.sequence):
            leaves = _believed(placed, keyring, findings)
            if leaves is not None and _follows(chain, placed, findings):
                chain.roots.append(placed)
                chain.starts.append(len(chain.leaves))
                chain.leaves += leaves
        if chain.roots:
            _check_beginning(chain, witnessed.get(name), terms, findings)
            findings.heads[name] = chain.head
            yield chain


def check_tails(
    chains: Iterable[Chain],
    heads: Iterable[tuple[str, ChainHead, str]],
    terms: Terms,
    findings: Findings,
) -> None:
    """Compare each chain with the last roots known from other sources: chain, head, source."""
    by_name = {chain.name: chain for chain in chains}
    for name, head, told in sorted(heads, key=lambda each: (each[0], each[2])):
        chain = by_name.get(name)
        if chain is None:
            if head.at <= terms.roots_since:
                findings.notes.append(f"{name}: older than what is kept; {told} names it")
                continue
            findings.add(
                "truncated", name, f"no root of it is left, but {told} names #{head.sequence}"
            )
        elif chain.head.sequence < head.sequence:
            findings.add(
                "truncated",
                name,
                f"the tail is cut off: it ends with #{chain.head.sequence}, but {told} names"
                f" #{head.sequence}",
            )
        else:
            same = (p for p in chain.roots if p.root.statement.sequence == head.sequence)
            for placed in same:
                if placed.digest != head.digest or placed.root.statement.at != head.at:
                    findings.add(
                        "fork", placed.where, f"{placed.name} is not the root that {told} names"
                    )


def _check_order(roots: Iterable[PlacedRoot], findings: Findings) -> None:
    """Check that the roots of a chain stand on each partition as they follow each other."""
    last: dict[int, PlacedRoot] = {}
    for placed in sorted(roots, key=lambda p: (p.partition, p.order)):
        before = last.setdefault(placed.partition, placed)
        if placed.root.statement.sequence < before.root.statement.sequence:
            told = f"{placed.name} stands behind #{before.root.statement.sequence}"
            findings.add("reordered", placed.where, told)
        else:
            last[placed.partition] = placed


def _believed(placed: PlacedRoot, keyring: Keyring, findings: Findings) -> list[bytes] | None:
    """Return the leaves of a root whose signature and tree are valid."""
    root, statement = placed.root, placed.root.statement
    try:
        key = keyring.check(statement.key, statement.writer, statement.at)
    except KeyProblem as problem:
        findings.add(problem.kind, placed.where, f"{placed.name}: {problem.message}")
        return None
    if not is_signed(key, "root", statement, root.signature):
        findings.add("forged", placed.where, f"{placed.name}: the signature is wrong")
        return None
    try:
        leaves = leaves_of(root)
    except ValueError as error:
        findings.add("broken_root", placed.where, f"{placed.name}: {error}")
        return None
    if not leaves or len(leaves) != statement.count or tree_hash(leaves).hex() != statement.tree:
        told = f"{placed.name}: its {len(leaves)} leaves are not the {statement.count} signed"
        findings.add("broken_root", placed.where, told)
        return None
    return leaves


def _follows(chain: Chain, placed: PlacedRoot, findings: Findings) -> bool:
    statement = placed.root.statement
    if abs(placed.taken_at - statement.at) > CLOCKS_APART_S_MAX:
        findings.add(
            "back_dated",
            placed.where,
            f"{placed.name} says {iso_time(statement.at)}, but was written"
            f" {iso_time(placed.taken_at)}",
        )
    if not chain.roots:
        return True
    before = chain.roots[-1]
    last = before.root.statement
    if statement.sequence == last.sequence:
        if placed.digest == before.digest:
            findings.add("replayed", placed.where, f"{placed.name} stands at {before.where} too")
        else:
            findings.add(
                "fork", placed.where, f"{placed.name} is another root than that at {before.where}"
            )
        return False
    if statement.at < last.at:
        findings.add(
            "back_dated",
            placed.where,
            f"{placed.name} says {iso_time(statement.at)}, before its predecessor's"
            f" {iso_time(last.at)}",
        )
    if statement.sequence > last.sequence + 1:
        count = statement.sequence - last.sequence - 1
        findings.add(
            "gap",
            placed.where,
            f"{count} transactions of {chain.name} are missing: #{last.sequence + 1} to"
            f" #{statement.sequence - 1}",
        )
    elif statement.previous != before.digest:
        findings.add(
            "broken_link", placed.where, f"{placed.name} names another root before it than is there"
        )
    return True


def _check_beginning(
    chain: Chain, kept: tuple[ChainHead, str] | None, terms: Terms, findings: Findings
) -> None:
    placed = chain.roots[0]
    first = placed.root.statement
    if first.sequence == 0:
        if first.previous is not None:
            findings.add("broken_link", placed.where, f"{chain.name}#0 names one before it")
        return
    begins = f"{chain.name} begins with #{first.sequence} at {iso_time(first.at)}"
    if kept is not None and kept[0].sequence == first.sequence - 1:
        head, told = kept
        if head.digest != first.previous:
            said = f"{placed.name} names another root before it than {told}"
            findings.add("fork", placed.where, said)
        elif head.at <= terms.roots_since or terms.accept_beginnings:
            findings.notes.append(f"{begins}: it follows the root that {told} names")
        else:
            said = f"{begins}: it follows the root that {told} names, of {iso_time(head.at)}, which"
            findings.add("gap", placed.where, f"{said} is not so old that it may be gone")
    elif placed.latest <= terms.roots_since:
        findings.notes.append(f"{begins}, so long ago that what came before may be gone")
    elif kept is not None and kept[0].sequence < first.sequence:
        told = f"{begins}, and does not follow #{kept[0].sequence}, which {kept[1]} names"
        findings.add("gap", placed.where, told)
    elif terms.accept_beginnings:
        findings.notes.append(f"{begins}: what came before is not kept here")
    else:
        findings.add(
            "gap",
            placed.where,
            f"{begins}, which is not so long ago that what came before may be gone: it was deleted,"
            " or nothing came for long (--heads of an earlier check shows which;"
            " --accept-beginnings takes it as it is)",
        )
