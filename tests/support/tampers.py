"""Alterations of a trail, and what the auditor must say of each."""

import base64
from collections.abc import Callable
from dataclasses import replace

from audit_cases import Trail, changed, resigned
from stream_cases import START, make_key

from streams.engine.log import Record
from topics import KeyEntry, Revocation, Root, decode, encode
from topics.signing.merkle import leaf_hash
from topics.signing.signed_root import leaves_of

CHAIN = "yard.router-yard.requests-0"
FIRST_KEY, SECOND_KEY = make_key(1), make_key(2)


def index_of(trail: Trail, sequence: int) -> int:
    roots = [decode(Root, record.value or b"") for record in trail.roots]
    return next(i for i, r in enumerate(roots) if r.statement.sequence == sequence)


def root_at(trail: Trail, sequence: int) -> Root:
    return decode(Root, trail.roots[index_of(trail, sequence)].value or b"")


def put_root(trail: Trail, sequence: int, root: Root) -> None:
    at = index_of(trail, sequence)
    trail.roots[at] = trail.roots[at]._replace(value=encode(root))


def records_under(trail: Trail, sequence: int) -> list[Record]:
    leaves = set(leaves_of(root_at(trail, sequence)))
    return [r for r in trail.evidence if leaf_hash(r.value or b"") in leaves]


def flip_evidence(trail: Trail) -> None:
    trail.evidence[3] = changed(trail.evidence[3], b'"tenant":"t', b'"tenant":"u')


def flip_root(trail: Trail) -> None:
    trail.roots[2] = changed(trail.roots[2], b'"count":2', b'"count":3')


def flip_leaf(trail: Trail) -> None:
    root = root_at(trail, 2)
    raw = bytearray(base64.b64decode(root.leaves))
    raw[5] ^= 1
    put_root(trail, 2, replace(root, leaves=base64.b64encode(raw).decode()))


def drop_record(trail: Trail) -> None:
    del trail.evidence[4]


def drop_batch(trail: Trail) -> None:
    gone = records_under(trail, 2)
    trail.evidence = [r for r in trail.evidence if r not in gone]
    del trail.roots[index_of(trail, 2)]


def drop_root(trail: Trail) -> None:
    del trail.roots[index_of(trail, 2)]


def swap(trail: Trail) -> None:
    first, second = (
        [i for i, r in enumerate(trail.evidence) if r.partition == trail.evidence[0].partition]
    )[:2]
    evidence = trail.evidence
    evidence[first], evidence[second] = evidence[second], evidence[first]


def replay(trail: Trail) -> None:
    trail.evidence.append(trail.evidence[0])


def replay_root(trail: Trail) -> None:
    trail.roots.append(trail.roots[0])


def insert(trail: Trail) -> None:
    trail.evidence.insert(2, changed(trail.evidence[1], b'"at":', b'"at":1'))


def move(trail: Trail) -> None:
    trail.evidence[1] = trail.evidence[1]._replace(key=b"r-other")


def fork(trail: Trail) -> None:
    """The holder of the key signs another transaction in the place of one."""
    other = resigned(root_at(trail, 3), FIRST_KEY, writer="router/a", at=START + 0.5)
    at = index_of(trail, 3)
    trail.roots.insert(at + 1, trail.roots[at]._replace(value=encode(other)))


def rewrite_history(trail: Trail) -> None:
    """The holder of the key drops a transaction and numbers the next one like it."""
    gone = records_under(trail, 2)
    trail.evidence = [r for r in trail.evidence if r not in gone]
    third = root_at(trail, 3)
    put_root(trail, 3, resigned(third, FIRST_KEY, sequence=2))
    del trail.roots[index_of(trail, 2)]


def forge(trail: Trail) -> None:
    stranger = make_key(66)
    put_root(trail, 2, resigned(root_at(trail, 2), stranger, key=stranger.id))


def forge_under_another_name(trail: Trail) -> None:
    put_root(trail, 2, resigned(root_at(trail, 2), make_key(66)))


def sign_for_another(trail: Trail) -> None:
    put_root(trail, 2, resigned(root_at(trail, 2), FIRST_KEY, writer="worker/b"))


def relink(trail: Trail) -> None:
    put_root(trail, 2, resigned(root_at(trail, 2), FIRST_KEY, previous="00" * 32))


def back_date(trail: Trail) -> None:
    put_root(trail, 8, resigned(root_at(trail, 8), SECOND_KEY, at=START + 0.2))


def back_date_within(trail: Trail) -> None:
    """To a time at which the key was valid, but after which its chain had gone on."""
    for sequence, at in ((7, START + 200.0), (8, START + 100.0)):
        put_root(trail, sequence, resigned(root_at(trail, sequence), SECOND_KEY, at=at))


def date_by_a_clock_of_its_own(trail: Trail) -> None:
    put_root(trail, 8, resigned(root_at(trail, 8), SECOND_KEY, at=START + 86400.0))


def delete_tail(trail: Trail) -> None:
    for sequence in (8, 7):
        gone = records_under(trail, sequence)
        trail.evidence = [r for r in trail.evidence if r not in gone]
        del trail.roots[index_of(trail, sequence)]
    # The progress is rolled back too; the heartbeat was published.
    trail.progress = trail.progress[:-2]


def delete_all(trail: Trail) -> None:
    trail.evidence, trail.roots, trail.progress = [], [], []


def revoke(trail: Trail) -> None:
    entry = KeyEntry(revocation=Revocation(SECOND_KEY.id, START + 0.5, "a disk was stolen"))
    name = f"revoked/{SECOND_KEY.id}".encode()
    trail.keys.append(trail.keys[0]._replace(key=name, value=encode(entry)))


def hide_key(trail: Trail) -> None:
    trail.keys = [r for r in trail.keys if SECOND_KEY.id.encode() not in (r.key or b"")]


TAMPERS: dict[Callable[[Trail], None], dict[str, str]] = {
    flip_evidence: {"altered": "altered, or forged", "missing": "record 2 of 2 under"},
    flip_root: {"forged": f"{CHAIN}#2: the signature is wrong"},
    flip_leaf: {"broken_root": "its 2 leaves are not the 2 signed"},
    drop_record: {"missing": "it was deleted, or altered"},
    drop_batch: {"gap": f"1 transactions of {CHAIN} are missing: #2 to #2"},
    drop_root: {"gap": "#2 to #2", "altered": "no signed root is over it"},
    swap: {"reordered": "stands behind"},
    replay: {"replayed": "stands before it already"},
    replay_root: {"replayed": f"{CHAIN}#0 stands at"},
    insert: {"altered": "altered, or forged"},
    move: {"wrong_key": "its key is b'r-other'"},
    fork: {"fork": f"{CHAIN}#3 is another root than that at"},
    rewrite_history: {"gap": "#3 to #3", "broken_link": "#2 names another root before it"},
    forge: {"unknown_key": f"key {make_key(66).id} is not among the published keys"},
    forge_under_another_name: {"forged": "the signature is wrong"},
    sign_for_another: {"forged": "belongs to router/a, not to worker/b"},
    relink: {"broken_link": f"{CHAIN}#2 names another root before it than is there"},
    back_date: {"outside_validity": "is valid from"},
    back_date_within: {"back_dated": "before its predecessor's"},
    date_by_a_clock_of_its_own: {"back_dated": "but was written"},
    delete_tail: {"truncated": "it ends with #6, but the heartbeat of router/a"},
    delete_all: {"truncated": "no root of it is left, but the heartbeat of router/a"},
    revoke: {"revoked_key": "was revoked at 2027-01-15T08:00:00Z: a disk was stolen"},
    hide_key: {"unknown_key": f"key {SECOND_KEY.id} is not among the published keys"},
}
