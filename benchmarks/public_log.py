"""Cost of the public log: to append, to keep, to verify.

    python benchmarks/public_log.py --entries 100000

Roots are made beforehand and read from a log in memory; the log stands in a directory, each file
synced. Prints a table of Markdown.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).parents[1]))

from shunter.public_log.check import LogCheck
from shunter.public_log.publisher import PublicLog
from shunter.public_log.store import DirectoryStore
from shunter.public_log.tree import read_entries, read_tile
from shunter.public_log.witnesses import Witnesses
from streams.engine.clock import SystemClock
from streams.engine.log import Log, Partition, Record
from topics import Catalogue, ChainHead, Settings, encode
from topics.public_log.notes import make_note_key
from topics.public_log.policy import TrustPolicy, parse_policy
from topics.public_log.proofs import check_log_proof, format_log_proof
from topics.public_log.tiles import TILE_WIDTH, TiledTree
from topics.signing.keys import load_signing_key
from topics.signing.merkle import leaf_hash
from topics.signing.signed_root import make_root

# As of a router at a steady load: one or two records a transaction.
LEAVES = 2
READ_RECORDS = 500
Figure = tuple[str, str]
PROOFS = 100


class Roots:
    """The roots topic: one partition of records that grow to be visible."""

    def __init__(self, topic: str, count: int) -> None:
        key, head = load_signing_key(None), cast("ChainHead | None", None)
        named = (key.private, key.id, "router/router-0", "inference.router-inference.requests-0")
        self.values: list[bytes] = []
        self.visible = 0
        for n in range(count):
            leaves = [leaf_hash(b"%d-%d" % (n, leaf)) for leaf in range(LEAVES)]
            root, head = make_root(*named, head, leaves, 1_700_000_000.0 + n / 100)
            self.values.append(encode(root))
        self._partition = Partition(topic, 0)

    async def bounds(
        self, partitions: Collection[Partition]
    ) -> Mapping[Partition, tuple[int, int]]:
        """Return what is visible."""
        return {p: (0, self.visible if p == self._partition else 0) for p in partitions}

    async def read(
        self, starts: Mapping[Partition, int], ends: Mapping[Partition, int]
    ) -> AsyncIterator[Sequence[Record]]:
        """Yield the records, some at a time."""
        at, end = starts[self._partition], ends[self._partition]
        while at < end:
            last = min(at + READ_RECORDS, end)
            yield [
                Record(self._partition, n, b"chain", self.values[n], [], 1_700_000_000_000)
                for n in range(at, last)
            ]
            at = last


async def append(entries: int, store: DirectoryStore) -> tuple[Roots, TrustPolicy, list[Figure]]:
    """Write a log; return its roots, the policy to read it by, and the figures."""
    settings = Settings(partitions=1)
    catalogue, key = Catalogue(settings), make_note_key("log.example.com/bench")
    roots = Roots(catalogue.evidence_roots, entries)
    policy = parse_policy(f"log {key.verifier.text}\nquorum none\n".encode())
    given = (cast("Log", roots), catalogue, store, key, Witnesses(policy), SystemClock())
    public = PublicLog(*given)
    each, rounds = 20, 50
    figures: list[Figure] = []
    roots.visible = entries - each * rounds
    begun = time.perf_counter()
    await public.round()
    took = time.perf_counter() - begun
    figures.append(("append, all at once", f"{roots.visible / took:,.0f} entries/s"))
    begun = time.perf_counter()
    for _ in range(rounds):
        roots.visible += each
        await public.round()
    took = (time.perf_counter() - begun) / rounds
    figures.append((f"a round of {each} entries", f"{took * 1000:.1f} ms"))
    return roots, policy, figures


def read(roots: Roots, policy: TrustPolicy, store: DirectoryStore) -> list[Figure]:
    """Hold the roots against the log, and prove some of them; return the figures."""
    size, figures = roots.visible, []
    files = [path for path in Path(store.url).rglob("*") if path.is_file()]
    used = sum(path.stat().st_size for path in files if path.parent.suffix != ".p")
    figures.append(("size on disk, partial tiles apart", f"{used / size:.0f} bytes an entry"))
    problems: list[str] = []
    begun = time.perf_counter()
    check = LogCheck(store, policy, lambda *told: problems.append(str(told)))
    check.read(None)
    for value in roots.values[:size]:
        check.add_root(value, "")
    if problems or check.finish(time.time(), None).logged != size:
        raise SystemExit(f"the log is not as it should be: {problems[:3]}")
    took = time.perf_counter() - begun
    figures.append((f"verify a trail of {size:,} roots against it", f"{took:.1f} s"))
    checkpoint = store.read("checkpoint") or b""
    begun = time.perf_counter()
    for n in range(PROOFS):
        index = n * (size // PROOFS)
        tree = TiledTree(size, lambda *at: read_tile(store, *at))
        entry = read_entries(store, size, index // TILE_WIDTH)[index % TILE_WIDTH]
        proof = format_log_proof(index, tree.inclusion(index), checkpoint)
        check_log_proof(proof, entry, policy)
    took = (time.perf_counter() - begun) / PROOFS
    figures.append(("make a proof of an entry by its index, and check it", f"{took * 1000:.1f} ms"))
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        store = DirectoryStore(Path(directory))
        roots, policy, figures = asyncio.run(append(arguments.entries, store))
        figures += read(roots, policy, store)
    print("| measured | found |")
    print("| --- | --: |")
    for label, figure in figures:
        print(f"| {label} | {figure} |")


if __name__ == "__main__":
    main()
