"""The public log: what it signs whenever it dies, whom it believes, what an auditor finds."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fsspec.implementations.memory import MemoryFileSystem
from memory_log import MemoryLog
from public_log_cases import (
    KEY,
    OTHER_KEY,
    DeadError,
    Installation,
    MortalStore,
    PlainWitness,
)
from stream_cases import FakeClock, make_settings
from tiers import seeds

from shunter.audit.findings import Kind
from shunter.processes.public_log import PublicLogService, make_public_log
from shunter.public_log.check import LAG_S_MAX, LogCheck, LogFacts
from shunter.public_log.store import DirectoryStore, LogStoreError, ObjectStore, open_store
from shunter.public_log.tree import JOURNAL, LogForkError, LogTree, read_entries, read_tile
from streams.metrics import registry as m
from streams.metrics.metric import Metric
from topics import Settings, encode
from topics.public_log.entries import entry_of
from topics.public_log.notes import Checkpoint, NoteError, parse_checkpoint, parse_note
from topics.public_log.policy import TrustPolicy, parse_policy
from topics.public_log.tiles import TILE_WIDTH, TiledTree
from topics.signing.key_files import KeyFileError, write_key_file
from topics.signing.merkle import leaf_hash, tree_hash

ONE = "quorum none\n"


def entries_in(store: DirectoryStore | ObjectStore, size: int) -> list[bytes]:
    count = -(-size // TILE_WIDTH)
    return [entry for n in range(count) for entry in read_entries(store, size, n)]


def published(store: DirectoryStore | ObjectStore) -> Checkpoint:
    return parse_checkpoint(parse_note(store.read("checkpoint") or b"").text)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "log"


async def test_each_committed_root_is_in_the_log_once(place: Path) -> None:
    yard, store = Installation(), DirectoryStore(place)
    public = yard.public_log(store)
    values = yard.sign(5)
    assert await public.round() == 5
    assert await public.round() == 0
    values += yard.sign(600)
    assert await public.round() == 600
    head = published(store)
    entries = entries_in(store, head.size)
    assert sorted(entries) == sorted(entry_of(value) or b"" for value in values)
    assert tree_hash([leaf_hash(entry) for entry in entries]) == head.root
    tree = TiledTree(head.size, lambda *at: read_tile(store, *at))
    assert tree.root() == head.root
    assert public.state.lag_s(yard.at + 100) == 0


async def test_a_restart_goes_on_where_it_ended(place: Path) -> None:
    yard = Installation()
    for count in (3, 0, 253, 1, 700):
        yard.sign(count)
        store = DirectoryStore(place)
        assert await yard.public_log(store).round() == count
        store.release()
    head = published(DirectoryStore(place))
    assert head.size == 957
    assert len(set(entries_in(DirectoryStore(place), 957))) == 957


async def test_the_partial_tiles_of_full_ones_are_deleted(place: Path) -> None:
    yard, store = Installation(), DirectoryStore(place)
    public = yard.public_log(store)
    for count in (100, 100, 100, 300, 300):
        yard.sign(count)
        await public.round()
    partial = sorted(str(path.parent.relative_to(place)) for path in place.rglob("*.p/*"))
    assert {"tile/0/000.p", "tile/entries/000.p"}.isdisjoint(partial)
    assert {"tile/0/003.p", "tile/entries/003.p"} <= set(partial)
    assert len(list((place / JOURNAL).iterdir())) == 5


@pytest.mark.parametrize("death", seeds(10, 40))
async def test_killed_at_any_change_it_signs_one_tree(place: Path, death: int) -> None:
    """Die at the nth change of the store, go on, and hold each head against the final entries."""
    yard, changes = Installation(), iter(range(10_000))
    seen = PlainWitness("w")

    def dies() -> bool:
        return next(changes) == death

    with seen.serving():
        policy = f"{seen.line}quorum w\n"
        yard.sign(250)
        for count in (10, 0, 280):
            yard.sign(count)
            store = MortalStore(place, dies)
            public = yard.public_log(store, policy)
            try:
                await public.round()
            except DeadError:
                # Meanwhile more is signed, so that another append would be made of all of it.
                yard.sign(7)
    store_now = DirectoryStore(place)
    await yard.public_log(store_now).round()
    head = published(store_now)
    leaves = [leaf_hash(entry) for entry in entries_in(store_now, head.size)]
    assert len(set(leaves)) == len(leaves) == len(yard.roots)
    assert seen.seen
    for checkpoint in [*seen.seen, head]:
        assert tree_hash(leaves[: checkpoint.size]) == checkpoint.root


async def test_two_processes_never_both_append(place: Path) -> None:
    """Where no lock tells them of each other, as on an object store, the journal does."""
    yard = Installation()
    first = yard.public_log(MortalStore(place, lambda: False))
    second = yard.public_log(MortalStore(place, lambda: False))
    yard.sign(10)
    await first.round()
    await second.round()
    yard.sign(10)
    await second.round()
    yard.sign(10)
    with pytest.raises(LogForkError, match="another process has appended meanwhile"):
        await first.round()
    await second.round()
    assert published(DirectoryStore(place)).size == 30


async def test_a_process_that_slept_long_finds_its_number_taken_though_it_is_free(
    place: Path,
) -> None:
    yard = Installation()
    sleeper = yard.public_log(MortalStore(place, lambda: False))
    yard.sign(1)
    await sleeper.round()
    awake = yard.public_log(MortalStore(place, lambda: False))
    for _ in range(20):
        yard.sign(1)
        await awake.round()
    assert not (place / JOURNAL / f"{1:020d}.json").exists()
    before = published(DirectoryStore(place))
    with pytest.raises(LogForkError, match="another process"):
        await sleeper.round()
    assert not (place / JOURNAL / f"{1:020d}.json").exists()
    assert published(DirectoryStore(place)) == before


async def test_a_second_process_is_refused_by_the_lock(place: Path) -> None:
    yard, store = Installation(), DirectoryStore(place)
    await yard.public_log(store).round()
    with pytest.raises(LogStoreError, match="another process writes this log"):
        await yard.public_log(DirectoryStore(place)).round()


async def test_an_object_store_holds_the_same_log(tmp_path: Path) -> None:
    yard, other = Installation(), DirectoryStore(tmp_path)
    yard.sign(300)
    store = ObjectStore(f"memory://{tmp_path.name}")
    await yard.public_log(store).round()
    await yard.public_log(other).round()
    assert published(store) == published(other)
    assert entries_in(store, 300) == entries_in(other, 300)
    yard.sign(5)
    assert await yard.public_log(ObjectStore(store.url)).round() == 5


async def test_a_store_without_conditions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(f"memory://{tmp_path.name}")
    put = MemoryFileSystem.pipe_file
    monkeypatch.setattr(
        MemoryFileSystem, "pipe_file", lambda fs, path, data, mode: put(fs, path, data)
    )
    with pytest.raises(LogStoreError, match="conditional writes"):
        await Installation().public_log(store).round()


def test_a_web_server_is_no_place_to_write_to() -> None:
    with pytest.raises(LogStoreError, match="a directory or an object store"):
        open_store("https://log.example.com/")


async def test_files_that_were_changed_are_made_anew_or_not_signed_over(place: Path) -> None:
    yard, store = Installation(), DirectoryStore(place)
    for _ in range(2):
        yard.sign(3)
        await yard.public_log(store).round()
        store.release()
    before = published(store)
    for width in (6, 3):
        tile = place / f"tile/0/000.p/{width}"
        tile.write_bytes(tile.read_bytes()[::-1])
        if width == 6:
            # The last append is made again, of what Kafka has.
            await yard.public_log(store).round()
            store.release()
            assert published(store) == before
            tile.write_bytes(tile.read_bytes()[::-1])
    with pytest.raises(LogForkError, match="restore the files"):
        await yard.public_log(store).round()


async def test_what_was_decided_is_not_replaced_by_what_kafka_has_now(place: Path) -> None:
    yard, store = Installation(), DirectoryStore(place)
    yard.sign(3)
    await yard.public_log(store).round()
    store.release()
    for file in ("tile/0/000.p/3", "checkpoint"):
        (place / file).unlink()
    again = Installation(at=yard.at + 50)
    again.sign(3)
    with pytest.raises(LogForkError, match="nothing is signed"):
        await again.public_log(store).round()
    assert store.read("checkpoint") is None


@pytest.mark.parametrize("lost", ["journal", "checkpoint of another key", "another origin"])
async def test_a_store_that_is_not_its_own_is_refused(place: Path, lost: str) -> None:
    yard, key = Installation(), KEY
    yard.sign(3)
    store = DirectoryStore(place)
    await yard.public_log(store).round()
    store.release()
    if lost == "journal":
        for intent in (place / JOURNAL).iterdir():
            intent.unlink()
    elif lost == "another origin":
        key = replace(KEY, name="elsewhere.example.com")
    else:
        key = OTHER_KEY
    with pytest.raises(LogForkError):
        await yard.public_log(DirectoryStore(place), key=key).round()


async def test_a_topic_that_was_made_again_ends_the_log(place: Path) -> None:
    yard, store = Installation(), DirectoryStore(place)
    yard.sign(9)
    await yard.public_log(store).round()
    store.release()
    again = Installation()
    again.sign(2)
    with pytest.raises(LogForkError, match="made again, or has lost its end"):
        await again.public_log(DirectoryStore(place)).round()


class TestWitnesses:
    @pytest.fixture
    def three(self) -> Iterator[list[PlainWitness]]:
        made = [PlainWitness(name) for name in "abc"]
        with made[0].serving(), made[1].serving(), made[2].serving():
            yield made

    @staticmethod
    def policy(witnesses: list[PlainWitness], needed: int) -> str:
        names = " ".join(w.name for w in witnesses)
        lines = "".join(w.line for w in witnesses)
        return f"{lines}group g {needed} {names}\nquorum g\n"

    async def test_what_a_quorum_has_cosigned_is_published(
        self, place: Path, three: list[PlainWitness]
    ) -> None:
        yard, store = Installation(), DirectoryStore(place)
        policy = self.policy(three, 2)
        public = yard.public_log(store, policy)
        three[2].answer = lambda _checkpoint, _text: (500, b"no disk")
        yard.sign(4)
        await public.round()
        trusted = parse_policy(f"log {KEY.verifier.text}\n{policy}".encode())
        found = trusted.check(store.read("checkpoint") or b"")
        assert (found.checkpoint.size, sorted(found.cosigned)) == (4, ["a", "b"])
        assert "500" in public.witnesses.last_failure["c"]

    async def test_without_a_quorum_evidence_waits_and_the_lag_grows(
        self, place: Path, three: list[PlainWitness]
    ) -> None:
        yard, store = Installation(), DirectoryStore(place)
        public = yard.public_log(store, self.policy(three, 3))
        three[1].answer = lambda _checkpoint, _text: (503, b"")
        yard.sign(4)
        first = yard.at - 3
        await public.round()
        yard.sign(2)
        await public.round()
        assert store.read("checkpoint") is None
        assert (public.state.size, public.state.published) == (6, 0)
        assert public.state.lag_s(first + 60) == 60
        three[1].answer = None
        await public.round()
        assert published(store).size == 6
        assert public.state.lag_s(first + 60) == 0

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda text, _w: PlainWitness("b").cosign(text),
            lambda text, w: w.cosign(text.replace("\n6\n", "\n7\n")),
            lambda text, w: PlainWitness("b", w.key).cosign("another\n" + text),
            lambda _text, _w: "",
            lambda _text, _w: "— b AAAA\n",
        ],
    )
    async def test_a_wrong_cosignature_is_not_counted(
        self,
        place: Path,
        three: list[PlainWitness],
        wrong: Callable[[str, PlainWitness], str],
    ) -> None:
        yard, store = Installation(), DirectoryStore(place)
        public = yard.public_log(store, self.policy(three, 3))
        three[1].answer = lambda _c, text: (200, wrong(text, three[1]).encode())
        yard.sign(6)
        await public.round()
        assert store.read("checkpoint") is None
        assert list(public.witnesses.last_failure) == ["b"]

    async def test_a_witness_that_has_seen_more_stops_an_older_copy(
        self, place: Path, three: list[PlainWitness]
    ) -> None:
        yard, store = Installation(), DirectoryStore(place)
        policy = self.policy(three, 2)
        yard.sign(6)
        await yard.public_log(store, policy).round()
        store.release()
        three[0].answer = lambda _c, _t: (409, b"9\n")
        yard.sign(6)
        with pytest.raises(LogForkError, match="older files of it"):
            await yard.public_log(DirectoryStore(place), policy).round()
        assert {c.size for c in three[0].seen} == {6}

    async def test_a_witness_is_asked_from_where_it_stands(
        self, place: Path, three: list[PlainWitness]
    ) -> None:
        yard, store = Installation(), DirectoryStore(place)
        public = yard.public_log(store, self.policy(three, 3))
        told: list[int] = []

        def conflict(_checkpoint: Checkpoint, text: str) -> tuple[int, bytes]:
            told.append(1)
            return (409, b"2\n") if len(told) == 1 else (200, three[0].cosign(text).encode())

        three[0].answer = conflict
        yard.sign(6)
        await public.round()
        assert (published(store).size, len(told)) == (6, 2)


@dataclass
class Problem:
    kind: Kind
    where: str
    message: str


class TestCheck:
    """A trail against a log: both as they should be, then each way in which one may lie."""

    def audit(
        self,
        store: DirectoryStore,
        values: list[bytes],
        *,
        kept: bytes | None = None,
        policy: TrustPolicy | None = None,
        now: float = 0.0,
        retention_s: float | None = None,
    ) -> tuple[list[Problem], LogFacts | None, bytes | None]:
        found: list[Problem] = []
        trusted = policy or parse_policy(f"log {KEY.verifier.text}\n{ONE}".encode())
        check = LogCheck(store, trusted, lambda *told: found.append(Problem(*told)))
        if not check.read(kept):
            return found, None, None
        for n, value in enumerate(values):
            check.add_root(value, f"roots@{n}")
        return found, check.finish(now, retention_s), check.checkpoint

    @pytest.fixture
    def witness(self) -> Iterator[PlainWitness]:
        with PlainWitness("w").serving() as witness:
            yield witness

    async def test_a_trail_that_is_all_logged_is_good(self, place: Path) -> None:
        yard, store = Installation(), DirectoryStore(place)
        values = yard.sign(300)
        await yard.public_log(store).round()
        found, facts, kept = self.audit(store, values)
        assert found == []
        assert facts is not None
        assert (facts.logged, facts.fresh, facts.gone, facts.notes) == (300, 0, 0, [])
        values += yard.sign(30)
        found, facts, _ = self.audit(store, values, kept=kept)
        assert found == []
        assert facts is not None
        assert (facts.logged, facts.fresh) == (300, 30)

    async def test_topics_are_not_behind_the_log(self, place: Path) -> None:
        """What is logged was committed before, and they are read later: no minute is excused."""
        yard, store, found = Installation(), DirectoryStore(place), list[Kind]()
        values = yard.sign(20)
        await yard.public_log(store).round()
        policy = parse_policy(f"log {KEY.verifier.text}\n{ONE}".encode())
        check = LogCheck(store, policy, lambda kind, *_: found.append(kind))
        assert check.read(None)
        for value in values[:-1]:
            check.add_root(value, "roots@0")
        assert check.finish(yard.at, None, behind_s=0.0).young == 0
        assert found == ["unkept"]

    @pytest.mark.parametrize(("later_s", "expected"), [(3000, []), (4000, ["log_stale"])])
    async def test_the_witnesses_word_may_not_be_old(
        self, place: Path, later_s: float, expected: list[str]
    ) -> None:
        yard, store, found = Installation(), DirectoryStore(place), list[Kind]()
        witness = PlainWitness("w", at=lambda: yard.at)
        with witness.serving():
            lines = f"{witness.line}quorum w\n"
            values = yard.sign(5)
            await yard.public_log(store, lines).round()
        policy = parse_policy(f"log {KEY.verifier.text}\n{lines}".encode())
        check = LogCheck(store, policy, lambda kind, *_: found.append(kind))
        assert check.read(None)
        for value in values:
            check.add_root(value, "roots@0")
        check.finish(yard.at + later_s, None, age_s_max=3600.0)
        assert found == expected

    @pytest.mark.parametrize("cut", [slice(0, 10), slice(4, 6), slice(-4, None)])
    async def test_what_is_cut_out_of_the_trail_is_missed(self, place: Path, cut: slice) -> None:
        yard, store = Installation(), DirectoryStore(place)
        values = yard.sign(20)
        await yard.public_log(store).round()
        gone = len(values[cut])
        del values[cut]
        found, _, _ = self.audit(store, values, now=yard.at + 2 * LAG_S_MAX)
        assert [p.kind for p in found] == ["unkept"] * gone
        # An archive may be some minutes behind, which is told; it has no holes.
        found, facts, _ = self.audit(store, values, now=yard.at)
        assert facts is not None
        assert (len(found), facts.young) == ((0, gone) if cut.stop is None else (gone, 0))
        # What is old is excused at the front, as far as its owner has stated; nowhere else.
        found, facts, _ = self.audit(store, values, now=yard.at + 1e6, retention_s=1e5)
        assert len(found) == (0 if cut.start == 0 else gone)
        assert facts is not None
        assert facts.gone == (gone if cut.start == 0 else 0)

    async def test_a_root_that_was_slipped_in_is_not_in_the_log(
        self, place: Path, witness: PlainWitness
    ) -> None:
        yard, store = Installation(), DirectoryStore(place)
        witness.at = lambda: yard.at
        policy = f"{witness.line}quorum w\n"
        values = yard.sign(20)
        await yard.public_log(store, policy).round()
        trusted = parse_policy(f"log {KEY.verifier.text}\n{policy}".encode())
        # A chain of its own, in the past: all that is fresh comes after the cosignature.
        forger = Installation(at=yard.at - 2 * LAG_S_MAX)
        forged = forger.sign(3, chains=("ghost-0",))
        found, facts, _ = self.audit(store, values + forged, policy=trusted)
        told = [(p.kind, p.message) for p in found if "ghost" in p.message]
        assert facts is not None
        # It says that it is older than the log, of which the log tells.
        assert (told, facts.before_log) == ([], 3)
        forger = Installation(at=yard.at - 5)
        late = forger.sign(3, chains=("ghost-0",))
        yard.at += 2 * LAG_S_MAX
        values += yard.sign(5)
        yard.sign(0)
        await self.again(yard, store, policy)
        found, facts, _ = self.audit(store, values + late, policy=trusted)
        assert {(p.kind, p.where) for p in found} == {
            ("unlogged", f"roots@{n}") for n in range(25, 28)
        }

    @staticmethod
    async def again(yard: Installation, store: DirectoryStore, policy: str) -> None:
        store.release()
        await yard.public_log(store, policy).round()

    async def test_a_root_that_was_replaced_is_missed_twice(self, place: Path) -> None:
        yard, store = Installation(), DirectoryStore(place)
        values = yard.sign(20)
        await yard.public_log(store).round()
        root = yard.roots[8]
        statement = replace(root.statement, tree="00" * 32)
        values[8] = encode(replace(root, statement=statement))
        found, _, _ = self.audit(store, values)
        assert sorted(p.kind for p in found) == ["unkept", "unlogged"]

    async def test_two_histories_show_by_the_checkpoint_that_was_kept(self, tmp_path: Path) -> None:
        kept: list[bytes | None] = []
        for name, count in (("one", 20), ("two", 30)):
            yard, store = Installation(at=1.7e9 + count), DirectoryStore(tmp_path / name)
            values = yard.sign(count)
            await yard.public_log(store).round()
            kept.append(self.audit(store, values)[2])
        found, facts, _ = self.audit(DirectoryStore(tmp_path / "two"), values, kept=kept[0])
        assert [p.kind for p in found] == ["log_fork"]
        assert facts is None
        found, _, _ = self.audit(DirectoryStore(tmp_path / "one"), values, kept=kept[1])
        assert [p.kind for p in found] == ["log_truncated"]

    async def test_a_changed_entry_or_tile_shows(self, place: Path) -> None:
        yard, store = Installation(), DirectoryStore(place)
        values = yard.sign(20)
        await yard.public_log(store).round()
        bundle = place / "tile/entries/000.p/20"
        bundle.write_bytes(bundle.read_bytes().replace(b"router/a", b"router/b", 1))
        found, _, _ = self.audit(store, values)
        assert [p.kind for p in found] == ["log_altered"]
        bundle.unlink()
        found, _, _ = self.audit(store, values)
        assert [p.kind for p in found] == ["log_altered"]

    async def test_a_checkpoint_needs_its_log_and_its_quorum(
        self, place: Path, witness: PlainWitness
    ) -> None:
        yard, store = Installation(), DirectoryStore(place)
        values = yard.sign(3)
        policy = f"{witness.line}quorum w\n"
        await yard.public_log(store, policy).round()
        of_log = f"log {KEY.verifier.text}\n"
        good = parse_policy(f"{of_log}{policy}".encode())
        assert self.audit(store, values, policy=good)[0] == []
        stranger = PlainWitness("w", Ed25519PrivateKey.generate())
        for lines, why in (
            (f"{of_log}{stranger.line}quorum w\n", "no quorum of witnesses"),
            (f"log {OTHER_KEY.verifier.text}\n{policy}", "no log of the policy"),
        ):
            found, _, _ = self.audit(store, values, policy=parse_policy(lines.encode()))
            assert [p.kind for p in found] == ["log_checkpoint"]
            assert why in found[0].message
        (place / "checkpoint").unlink()
        found, _, _ = self.audit(store, values, policy=good)
        assert [p.kind for p in found] == ["log_checkpoint"]

    async def test_what_is_logged_long_after_its_time_is_back_dated(
        self, place: Path, witness: PlainWitness
    ) -> None:
        yard, store = Installation(), DirectoryStore(place)
        witness.at = lambda: yard.at
        policy = f"{witness.line}quorum w\n"
        trusted = parse_policy(f"log {KEY.verifier.text}\n{policy}".encode())
        values = yard.sign(4)
        await yard.public_log(store, policy).round()
        found, _, kept = self.audit(store, values, policy=trusted)
        assert found == []
        # Signed now, with a time from before the log's checkpoint that the auditor has.
        begun, yard.at = yard.at, yard.at - 2 * LAG_S_MAX
        values += yard.sign(2, chains=("other-0", "other-1"))
        yard.at = begun + 10
        await self.again(yard, store, policy)
        found, _, _ = self.audit(store, values, policy=trusted, kept=kept)
        assert [(p.kind, p.where) for p in found] == [
            ("back_dated", "entry 4"),
            ("back_dated", "entry 5"),
        ]

    async def test_roots_out_of_their_order_show(self, place: Path) -> None:
        yard = Installation()
        values = yard.sign(4, chains=("one",))
        tree = LogTree(DirectoryStore(place), KEY.name)
        tree.open()
        entries = [entry_of(value) or b"" for value in values]
        head = tree.append([], [entries[1], entries[0], *entries[2:], entries[2]])
        store = DirectoryStore(place)
        store.write("checkpoint", f"{head.text}\n{KEY.sign(head.text)}".encode())
        found, _, _ = self.audit(store, values)
        assert {p.kind for p in found} == {"log_order", "log_repeats"}

    def test_random_bytes_are_no_log(self, place: Path) -> None:
        noise = random.Random(7).randbytes(200)
        store = DirectoryStore(place)
        store.write("checkpoint", noise)
        found, _, _ = self.audit(store, [])
        assert [p.kind for p in found] == ["log_checkpoint"]
        with pytest.raises(NoteError):
            parse_note(noise)


class TestRole:
    """The process around it: files, what it waits for, what ends it, what it tells."""

    def settings(self, tmp_path: Path, policy: str) -> Settings:
        key = tmp_path / "log.key"
        write_key_file(key, KEY.text.encode())
        (tmp_path / "policy").write_text(policy)
        return make_settings().model_copy(
            update={
                "public_log": str(tmp_path / "log"),
                "public_log_key": key,
                "public_log_policy": tmp_path / "policy",
            }
        )

    def test_a_key_that_others_may_read_is_refused(self, tmp_path: Path) -> None:
        settings = self.settings(tmp_path, f"log {KEY.verifier.text}\n{ONE}")
        yard = Installation()
        made = make_public_log(settings, MemoryLog(yard.cluster), FakeClock())
        assert made.state.size == 0
        (tmp_path / "log.key").chmod(0o644)
        with pytest.raises(KeyFileError, match="chmod 600"):
            make_public_log(settings, MemoryLog(yard.cluster), FakeClock())

    @pytest.mark.parametrize(
        ("policy", "why"),
        [
            (ONE, "does not name this log; add: log log.example.com/yard"),
            (f"log {OTHER_KEY.verifier.text}\n{ONE}", "does not name this log"),
            (f"log {KEY.verifier.text}\n{PlainWitness('w').line}quorum w\n", "no quorum"),
        ],
        # Keys are new in each process.
        ids=["no log", "another log", "no witness"],
    )
    def test_a_policy_that_cannot_be_met_is_refused(
        self, tmp_path: Path, policy: str, why: str
    ) -> None:
        settings = self.settings(tmp_path, policy)
        with pytest.raises(NoteError, match=why):
            make_public_log(settings, MemoryLog(Installation().cluster), FakeClock())

    async def test_what_passes_is_waited_for_and_told_as_lag(self, place: Path) -> None:
        yard, clock = Installation(), FakeClock()
        clock.at = yard.at + 100
        store = MortalStore(place, lambda: False)
        yard.sign(4)
        public = yard.public_log(store)
        service = PublicLogService(public, MemoryLog(yard.cluster), clock, 5.0)
        store.read = no_disk
        await service.step()
        clock.at += 60
        assert told_by(service)[m.LOG_LAG, ()] == 60
        store.read = DirectoryStore(place).read
        await service.step()
        assert told_by(service) == {
            (m.LOGGED_ROOTS, ("appended",)): 4,
            (m.LOGGED_ROOTS, ("published",)): 4,
            (m.LOG_LAG, ()): 0,
        }

    async def test_a_fork_that_threatens_ends_it(self, place: Path) -> None:
        yard = Installation()
        yard.sign(4)
        first, second = (yard.public_log(MortalStore(place, lambda: False)) for _ in range(2))
        await first.round()
        await second.round()
        yard.sign(2)
        await second.round()
        yard.sign(2)
        service = PublicLogService(first, MemoryLog(yard.cluster), FakeClock(), 5.0)
        with pytest.raises(LogForkError):
            await service.step()


def no_disk(path: str) -> bytes | None:
    raise LogStoreError(f"{path}: no disk")


def told_by(service: PublicLogService) -> dict[tuple[Metric, tuple[str, ...]], float]:
    return {(metric, labels): value for metric, labels, value in service.readings()}
