"""Forgeries made at random: whatever can be done to a record, a topic or a file of the trail.

Not a list of known ways: a seed chooses where, and what is done there. ``Forgery.boundary`` says
why one can't be caught, where the model of docs/evidence.md has it so; all others must be.
"""

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from audit_cases import Office, Trail, make_trail
from stream_cases import START, make_key

from shunter.audit.terms import CLOCKS_APART_S_MAX
from streams.engine.log import Record
from topics import KeyEntry, Root, decode, encode
from topics.signing.introductions import introduce
from topics.signing.merkle import leaf_hash
from topics.signing.signed_root import sign

INSTALLATION, STRANGER = make_key(90), make_key(91)
TRUST = INSTALLATION.id
KINDS = ("evidence", "roots", "keys")


@dataclass
class Forgery:
    """What was done, in words; ``boundary`` is why it need not be caught."""

    told: str
    boundary: str | None = None


async def introduced_trail() -> Trail:
    """Return the trail of two keys that the installation key has introduced."""
    trail = await make_trail()
    for number in (1, 2):
        introduction = introduce(INSTALLATION, make_key(number).id, "router/*", 0.0)
        _publish(trail, KeyEntry(introduction=introduction))
    return trail


async def strange_trail() -> Trail:
    """Return what another installation has signed, on chains of the same name."""
    office = Office()
    await office.run(5, start=100, key=STRANGER)
    office.tell_heads()
    trail = office.trail()
    _publish(trail, KeyEntry(introduction=introduce(make_key(92), STRANGER.id, "*", 0.0)))
    return trail


def _publish(trail: Trail, entry: KeyEntry) -> None:
    name = (entry.name or "").encode()
    trail.keys.append(trail.keys[0]._replace(key=name, value=encode(entry)))


def forge(trail: Trail, strange: Trail, seed: int) -> Forgery:
    """Change a trail in place."""
    rng = random.Random(seed)
    way: Callable[..., Forgery] = rng.choice(
        [
            *(_field, _field, _field, _byte, _key, _drop, _cut, _cut, _repeat, _swap),
            *(_resign, _strange, _digest, _introduction, _time, _moved),
        ]
    )
    return way(trail, rng, strange)


def _field(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    kind, at, record = _pick(trail, rng)
    value = json.loads(record.value or b"")
    told = _change(value, rng)
    return _put(trail, kind, at, json.dumps(value, separators=(",", ":")).encode(), told)


def _byte(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    kind, at, record = _pick(trail, rng)
    raw = bytearray(record.value or b"")
    where = rng.randrange(len(raw))
    raw[where] ^= 1 << rng.randrange(8)
    return _put(trail, kind, at, bytes(raw), f"byte {where}")


def _put(trail: Trail, kind: str, at: int, value: bytes, told: str) -> Forgery:
    records = getattr(trail, kind)
    before, records[at] = records[at], records[at]._replace(value=value)
    is_same = kind == "keys" and _meaning(before.value) == _meaning(value)
    boundary = "a member of the keys topic that nobody reads, or that says nothing"
    return Forgery(f"{kind}[{at}]: {told}", boundary if is_same else None)


def _meaning(value: bytes | None) -> Any:
    """What is read of an entry of the keys topic."""
    try:
        told = json.loads(value or b"")
    except ValueError:
        return value
    if not isinstance(told, dict):
        return value
    read = {"published", "revocation", "heads", "introduction"}
    entry = {name: each for name, each in told.items() if name in read and each is not None}
    return {
        name: {k: v for k, v in each.items() if v is not None} if isinstance(each, dict) else each
        for name, each in entry.items()
    }


def _key(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    kind, at, record = _pick(trail, rng)
    getattr(trail, kind)[at] = record._replace(key=(record.key or b"") + b"x")
    return Forgery(f"{kind}[{at}]: another key")


def _drop(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    kind, at, record = _pick(trail, rng)
    del getattr(trail, kind)[at]
    return Forgery(f"{kind}[{at}] dropped", _is_heartbeat(record))


def _is_heartbeat(record: Record) -> str | None:
    is_one = (record.key or b"").startswith(b"heads/")
    return "a heartbeat: the head that the auditor has kept stands for it" if is_one else None


def _cut(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    """Roots from the front, the middle or the end, with all that they are over."""
    count = len(trail.roots)
    first = rng.choice([0, rng.randrange(count)])
    last = rng.randint(first + 1, count)
    gone = trail.roots[first:last]
    leaves = {leaf for r in gone for leaf in _leaves(decode(Root, r.value or b""))}
    del trail.roots[first:last]
    trail.evidence = [r for r in trail.evidence if _leaf(r) not in leaves]
    return Forgery(f"transactions {first} to {last} of {count} cut out")


def _repeat(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    kind, at, record = _pick(trail, rng)
    to = rng.randint(0, len(getattr(trail, kind)))
    getattr(trail, kind).insert(to, record)
    boundary = "the keys topic says the same once or twice" if kind == "keys" else None
    return Forgery(f"{kind}[{at}] again at {to}", boundary)


def _swap(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    kind, at, record = _pick(trail, rng)
    records = getattr(trail, kind)
    beside = [i for i, r in enumerate(records) if r.partition == record.partition and i != at]
    if not beside:
        return _drop(trail, rng, _strange)
    other = rng.choice(beside)
    # Each place has its time, which the broker gave it.
    times = records[at].timestamp_ms, records[other].timestamp_ms
    records[at], records[other] = (
        records[other]._replace(timestamp_ms=times[0]),
        records[at]._replace(timestamp_ms=times[1]),
    )
    boundary = "the order of the keys topic says nothing" if kind == "keys" else None
    return Forgery(f"{kind}[{at}] and [{other}] swapped", boundary)


def _time(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    """Another time of Kafka's, by minutes or by years."""
    kind, at, record = _pick(trail, rng)
    by_ms = rng.choice([1, -1]) * rng.choice([200_000, 400_000, 10**9, 10**12])
    moved = record.timestamp_ms + by_ms
    getattr(trail, kind)[at] = record._replace(timestamp_ms=moved)
    boundary: str | None = "Kafka's times of evidence and keys are not signed"
    if kind == "roots":
        said = decode(Root, record.value or b"").statement.at
        is_near = abs(moved / 1000 - said) <= CLOCKS_APART_S_MAX
        boundary = "clocks of a writer and a broker may be so far apart" if is_near else None
    return Forgery(f"{kind}[{at}]: {by_ms} ms later", boundary)


def _moved(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    """A record on another partition of its topic, the keys' having one."""
    kind, at, record = _pick(trail, rng)
    if kind == "keys":
        return _drop(trail, rng, _strange)
    number = (record.partition.number + rng.randrange(1, 4)) % 4
    home = record.partition._replace(number=number)
    getattr(trail, kind)[at] = record._replace(partition=home)
    return Forgery(
        f"{kind}[{at}] to partition {number}", "on which partition it stands is not signed"
    )


def _resign(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    """A root signed by a stranger, whose key may be published under the writer's name."""
    at = rng.randrange(len(trail.roots))
    root = decode(Root, trail.roots[at].value or b"")
    statement = replace(root.statement, key=STRANGER.id) if rng.random() < 0.8 else root.statement
    if rng.random() < 0.5:
        _publish(trail, KeyEntry(published=STRANGER.publish(statement.writer, START)))
    if rng.random() < 0.3:
        by = rng.choice([STRANGER, make_key(1)])
        _publish(trail, KeyEntry(introduction=introduce(by, STRANGER.id, "*", 0.0)))
    signature = sign(STRANGER.private, "root", statement)
    forged = replace(root, statement=statement, signature=signature)
    trail.roots[at] = trail.roots[at]._replace(value=encode(forged))
    return Forgery(f"roots[{at}] signed by a stranger")


def _digest(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    """What a request's digests are, or that there are none: of the body, or of the whole."""
    told = [i for i, r in enumerate(trail.evidence) if b'"whole":' in (r.value or b"")]
    at = rng.choice(told)
    value = json.loads(trail.evidence[at].value or b"")
    name = rng.choice(["whole", "hmac", "salt"])
    value["request_digest"][name] = _other(value["request_digest"][name], rng)
    if rng.random() < 0.2:
        del value["request_digest"]
    raw = json.dumps(value, separators=(",", ":")).encode()
    return _put(trail, "evidence", at, raw, f"its digest: {name}")


def _introduction(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    """In place of a key's introduction: another, by who can't, or for what it didn't sign."""
    told = [i for i, r in enumerate(trail.keys) if (r.key or b"").startswith(b"introduced/")]
    at, number = rng.choice(told), rng.choice([1, 2])
    key, by = make_key(number), rng.choice([STRANGER, make_key(3 - number)])
    how = rng.choice(["by another", "for another", "from later on", "until before", "to introduce"])
    limits: dict[str, tuple[Any, ...]] = {
        "for another": (INSTALLATION, key.id, "worker/*", 0.0),
        "from later on": (INSTALLATION, key.id, "*", START + 1000),
        "until before": (INSTALLATION, key.id, "*", 0.0, START - 1000),
        "to introduce": (INSTALLATION, key.id, "*", 0.0),
    }
    given = limits.get(how, (by, key.id, "*", 0.0))
    made = introduce(*given, introduces=how == "to introduce")
    name = f"introduced/{key.id}".encode()
    gone = [i for i in told if trail.keys[i].key == name] or [at]
    value = encode(KeyEntry(introduction=made))
    trail.keys[gone[0]] = trail.keys[gone[0]]._replace(key=name, value=value)
    return Forgery(f"the introduction of key {number} {how}")


def _strange(trail: Trail, rng: random.Random, strange: Trail) -> Forgery:
    """Records of another installation: evidence alone, with its roots, or with its keys too."""
    kinds = KINDS[: rng.randint(1, 3)]
    for kind in kinds:
        records = getattr(strange, kind)
        picked = records if len(kinds) > 1 else [rng.choice(records)]
        for record in picked:
            getattr(trail, kind).insert(rng.randint(0, len(getattr(trail, kind))), record)
    return Forgery(f"{', '.join(kinds)} of another installation")


def _pick(trail: Trail, rng: random.Random) -> tuple[str, int, Record]:
    kind = rng.choice(KINDS)
    at = rng.randrange(len(getattr(trail, kind)))
    return kind, at, getattr(trail, kind)[at]


def _change(value: Any, rng: random.Random) -> str:
    """Change something anywhere in parsed JSON, and say what."""
    places = list(_places(value, ()))
    path = rng.choice(places)
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    last, how = path[-1], rng.choice(["alter", "alter", "alter", "drop", "add"])
    if how == "add" and isinstance(holder, dict):
        holder["unheard_of"] = 1
    elif how == "drop":
        del holder[last]
    else:
        holder[last] = _other(holder[last], rng)
    return f"{how} at {'.'.join(map(str, path))}"


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, each in pairs:
        yield (*path, name)
        yield from _places(each, (*path, name))


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + rng.choice([1, -1, 0.5, 1000])
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice([c for c in "0a/=Z" if c != value[at]]) + value[at + 1 :]
    return rng.choice(["x", 1, {"x": 1}, [1]]) if value is None else None


def _leaves(root: Root) -> list[bytes]:
    raw = base64.b64decode(root.leaves)
    return [raw[at : at + 32] for at in range(0, len(raw), 32)]


def _leaf(record: Record) -> bytes:
    return leaf_hash(record.value or b"")
