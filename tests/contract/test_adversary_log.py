"""Both verifiers see whatever the owner of a public log does to it, or to the trail, by any seed.

    SHUNTER_ADVERSARY_SEEDS=5000 pytest -n0 tests/contract/test_adversary_log.py

The owner has the log's key, and no witness's; the auditor has a checkpoint from before.
"""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from audit_cases import resigned
from public_log_cases import KEY, Installation, PlainWitness
from second_verifier import PUBLIC_LOG
from stream_cases import make_key

from shunter.public_log.check import LogCheck
from shunter.public_log.store import DirectoryStore
from topics import Root, decode, encode
from topics.public_log.notes import parse_note
from topics.public_log.policy import parse_policy
from topics.public_log.tiles import TILE_WIDTH

SEEDS = int(os.environ.get("SHUNTER_ADVERSARY_SEEDS", "100"))
START = int(os.environ.get("SHUNTER_ADVERSARY_START", "0"))

# More than the time in which a root may be on its way.
LATER_S = 2000.0
# A tile, and a part of one.
COUNT = 280
# The first of the last quarter of an hour.
LAST = 35


@dataclass
class Scene:
    """A log at two moments, the roots of its trail, and what its owner could show instead."""

    directory: Path
    policy: bytes = b""
    kept: bytes = b""
    """The auditor's, of some entries fewer than there are."""
    old: list[bytes] = field(default_factory=list)
    """Checkpoints from before that one."""
    roots: list[bytes] = field(default_factory=list)
    late: list[bytes] = field(default_factory=list)
    """The root that ``dated`` has beside them."""
    now: float = 0.0

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def fork(self) -> Path:
        """Another history of that key, as long, which the witness was made to cosign."""
        return self.directory / "fork"

    @property
    def dated(self) -> Path:
        """The log with one entry more, which says that it is from before ``kept``."""
        return self.directory / "dated"

    async def build(self) -> None:
        with ExitStack() as stack:
            witness = stack.enter_context(PlainWitness("w").serving())
            lines = f"{witness.line}quorum w\n"
            self.policy = f"log {KEY.verifier.text}\n{lines}".encode()
            yard, store = Installation(), DirectoryStore(self.log)
            witness.at = lambda: yard.at
            public = yard.public_log(store, lines)
            for count in (5, 10, LAST - 15, COUNT - LAST):
                self.old.append(store.read("checkpoint") or b"")
                self.roots += yard.sign(count)
                await public.round()
                yard.at += LATER_S
            self.kept = self.old.pop()
            self.old.remove(b"")
            self.now = yard.at
            shutil.copytree(self.log, self.dated)
            yard.at -= 3 * LATER_S
            self.late = yard.sign(1, ["yard-7"])
            witness.at = lambda: self.now
            await yard.public_log(DirectoryStore(self.dated), lines).round()
            other = Installation(at=1.6e9)
            other.sign(COUNT)
            await other.public_log(DirectoryStore(self.fork), lines).round()

    def found(self, log: Path, roots: list[bytes]) -> set[str]:
        """What an auditor finds."""
        kinds: list[str] = []
        policy = parse_policy(self.policy)
        check = LogCheck(DirectoryStore(log), policy, lambda kind, *_: kinds.append(kind))
        if check.read(self.kept):
            for number, value in enumerate(roots):
                check.add_root(value, f"roots@{number}")
            check.finish(self.now, None)
        assert bool(kinds) == bool(self.second_found(log, roots)), kinds
        return set(kinds)

    def second_found(self, log: Path, roots: list[bytes]) -> set[str]:
        """What the second verifier finds, whose code is its own."""
        kinds: list[str] = []
        given = (str(log), self.policy.decode(), lambda kind, *_: kinds.append(kind), self.kept)
        second = PUBLIC_LOG.PublicLog(*given)
        if second.is_good:
            second.check([json.loads(root) for root in roots], self.now)
        return set(kinds)


Change = Callable[[Scene, Path, list[bytes], random.Random], str | None]
"""Changes a copy of the log, and the roots, in place; returns why it need not be seen."""


def read_of(log: Path) -> list[Path]:
    """Return the files that an auditor reads."""
    bundles = log / "tile" / "entries"
    return [log / "checkpoint", bundles / "000", bundles / "001.p" / f"{COUNT - TILE_WIDTH}"]


def a_byte(_: Scene, log: Path, __: list[bytes], rng: random.Random) -> str | None:
    path = rng.choice(sorted(p for p in log.rglob("*") if p.is_file() and p.stat().st_size))
    raw = bytearray(path.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    return None if path in read_of(log) else "the tree is made anew, and no other file read"


def a_file(_: Scene, log: Path, __: list[bytes], rng: random.Random) -> str | None:
    path = rng.choice(read_of(log))
    if rng.random() < 0.5:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    return None


def an_old_checkpoint(scene: Scene, log: Path, _: list[bytes], rng: random.Random) -> str | None:
    (log / "checkpoint").write_bytes(rng.choice(scene.old))
    return None


def a_fork(scene: Scene, log: Path, _: list[bytes], rng: random.Random) -> str | None:
    """Cosigned, or published without that, or its files under the true checkpoint."""
    true = (log / "checkpoint").read_bytes()
    shutil.rmtree(log)
    shutil.copytree(scene.fork, log)
    text = parse_note((log / "checkpoint").read_bytes()).text
    how = rng.choice(["cosigned", "alone", "true"])
    if how == "alone":
        (log / "checkpoint").write_bytes(f"{text}\n{KEY.sign(text)}".encode())
    elif how == "true":
        (log / "checkpoint").write_bytes(true)
    return None


def a_back_dated_root(scene: Scene, log: Path, roots: list[bytes], _: random.Random) -> str | None:
    shutil.rmtree(log)
    shutil.copytree(scene.dated, log)
    roots += scene.late
    return None


def roots_gone(_: Scene, __: Path, roots: list[bytes], rng: random.Random) -> str | None:
    first = rng.choice([0, rng.randrange(len(roots))])
    del roots[first : rng.randint(first + 1, len(roots))]
    return None


def another_root(_: Scene, __: Path, roots: list[bytes], rng: random.Random) -> str | None:
    """Signed anew by the writer's own key: another version of one that is logged."""
    at = rng.randrange(len(roots))
    root = decode(Root, roots[at])
    roots[at] = encode(resigned(root, make_key(1), at=root.statement.at - rng.choice([0.5, 5000])))
    return None


def a_root_in_front(_: Scene, __: Path, roots: list[bytes], rng: random.Random) -> str | None:
    """On a chain that nobody has heard of, from before the last checkpoint."""
    at = rng.randrange(len(roots))
    root = decode(Root, roots[at])
    roots.insert(rng.randrange(len(roots)), encode(resigned(root, make_key(1), chain="yard-9")))
    return None if at < LAST else "of the last quarter of an hour, as if it were on its way"


def the_order(_: Scene, __: Path, roots: list[bytes], rng: random.Random) -> str | None:
    """A root's number is changed with that of another, as if they had come the other way round."""
    first, second = (decode(Root, roots[i]) for i in rng.sample(range(len(roots)), 2))
    if first.statement.chain != second.statement.chain:
        return "not of one chain"
    statement = replace(first.statement, sequence=second.statement.sequence)
    roots.append(encode(replace(first, statement=statement)))
    return None


CHANGES: list[Change] = [
    *(a_byte, a_byte, a_file, an_old_checkpoint, a_fork, a_back_dated_root),
    *(roots_gone, another_root, a_root_in_front, the_order),
]


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    await made.build()
    return made


async def test_each_forgery_of_a_log_is_seen(scene: Scene, tmp_path: Path) -> None:
    assert scene.found(scene.log, scene.roots) == set()
    assert scene.found(scene.dated, scene.roots + scene.late) == {"back_dated"}
    assert scene.found(scene.fork, scene.roots) == {"log_fork"}
    true = (scene.log / "checkpoint").read_bytes()
    for place, checkpoint, kind in (
        (scene.log, scene.old[0], "log_truncated"),
        (scene.fork, true, "log_altered"),
    ):
        copy = shutil.copytree(place, tmp_path / kind)
        (copy / "checkpoint").write_bytes(checkpoint)
        assert scene.found(copy, scene.roots) == {kind}
    missed, outcomes = [], Counter[str]()
    for seed in range(START, START + SEEDS // 2):
        rng, copy, roots = random.Random(seed), tmp_path / "copy", list(scene.roots)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(scene.log, copy)
        change = rng.choice(CHANGES)
        boundary = change(scene, copy, roots, rng)
        outcomes["boundary" if boundary else "caught"] += 1
        if boundary is None and not scene.found(copy, roots):
            missed.append((seed, change.__name__))
    assert not missed, f"{len(missed)} of {SEEDS // 2}: {missed[:9]}"
    assert outcomes["caught"] > 0.3 * SEEDS, outcomes
