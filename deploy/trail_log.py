"""The public log of Shunter's roots, for the second verifier.

Written from c2sp.org's signed-note, tlog-checkpoint, tlog-cosignature, tlog-policy and tlog-tiles,
RFC 6962 and docs/public-log.md; shares no code with Shunter.
"""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from trail_formats import jcs, raw_of, sha256, tree

LAG_S = 900
CLOCKS_S = 300
LOG_KEY, COSIGNATURE = 1, 4


class LogError(ValueError):
    """Something of a log that can't be believed."""


def vkey(text, kind):
    """The name, the id and the public key of a vkey."""
    name, told_id, material = text.split("+", 2)
    raw = raw_of(material)
    named = sha256(name.encode() + b"\n" + raw)[:4]
    if raw[0] != kind or len(raw) != 33 or told_id != named.hex():
        raise LogError(f"{text}: no key of kind {kind}")
    return name, named, Ed25519PublicKey.from_public_bytes(raw[1:])


def read_policy(text):
    """The logs, the witnesses and the groups of a policy, and its quorum."""
    logs, witnesses, groups, quorum = [], {}, {}, None
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "log":
            logs.append(vkey(words[1], LOG_KEY))
        elif words[0] == "witness":
            witnesses[words[1]] = vkey(words[2], COSIGNATURE)
        elif words[0] == "group":
            members = words[3:]
            needed = {"any": 1, "all": len(members)}.get(words[2]) or int(words[2])
            if not 1 <= needed <= len(members):
                raise LogError(f"no group: {line}")
            groups[words[1]] = needed, members
        elif words[0] == "quorum" and quorum is None:
            quorum = words[1]
        else:
            raise LogError(f"no line of a policy: {line}")
    if quorum is None or (quorum != "none" and quorum not in {**witnesses, **groups}):
        raise LogError("a policy has one quorum, of a witness or group that it names")
    return logs, witnesses, groups, quorum


def is_met(policy, name, cosigners):
    _, witnesses, groups, _ = policy
    if name == "none" or name in witnesses:
        return name == "none" or name in cosigners
    needed, members = groups[name]
    return sum(is_met(policy, each, cosigners) for each in members) >= needed


def verified(key, signature, message):
    try:
        key.verify(signature, message)
    except InvalidSignature:
        raise LogError("a signature in the checkpoint is wrong") from None


def note_of(data):
    """The text of a signed note, and its signatures by name and id of a key."""
    text, found, rest = data.decode().rpartition("\n\n")
    if not found or not rest.endswith("\n"):
        raise LogError("no signed note")
    signatures = {}
    for line in rest[:-1].split("\n"):
        dash, name, material = line.split(" ")
        raw = raw_of(material)
        if dash != "\u2014" or len(raw) <= 4:
            raise LogError("no signature of a note")
        signatures.setdefault((name, raw[:4]), raw[4:])
    return text + "\n", signatures


def cosigned_of(policy, text, signatures):
    """Times at which witnesses have cosigned, by their names in the policy."""
    cosigned = {}
    for own, (name, key_id, key) in policy[1].items():
        raw = signatures.get((name, key_id))
        if raw is not None:
            cosigned[own] = at = int.from_bytes(raw[:8], "big")
            verified(key, raw[8:], f"cosignature/v1\ntime {at}\n{text}".encode())
            if at == 0:
                raise LogError("a cosignature without a time")
    return cosigned


def checkpoint_of(text):
    """Origin, size and root."""
    origin, size, root, *_ = text.split("\n")
    if not re.fullmatch(r"0|[1-9][0-9]*", size) or len(raw_of(root)) != 32:
        raise LogError("no checkpoint")
    return origin, int(size), raw_of(root)


def believed_checkpoint(data, policy):
    """A checkpoint that a log and the quorum of a policy have signed, and when a quorum had."""
    text, signatures = note_of(data)
    found = checkpoint_of(text)
    logged = [each for each in policy[0] if each[0] == found[0] and each[:2] in signatures]
    for name, key_id, key in logged:
        verified(key, signatures[name, key_id], text.encode())
    cosigned, quorum = cosigned_of(policy, text, signatures), policy[3]
    if not logged or not is_met(policy, quorum, cosigned):
        raise LogError("not signed by a log of the policy, or not cosigned by its quorum")
    if quorum == "none":
        return *found, None
    times = sorted(cosigned.values())
    met = (t for t in times if is_met(policy, quorum, {n for n, at in cosigned.items() if at <= t}))
    return *found, next(met)


def reader_of(place):
    """A function that returns a file of a log, of a directory or a web server; None without it."""

    def read(path):
        if not place.startswith(("http://", "https://")):
            file = Path(place, path)
            return file.read_bytes() if file.is_file() else None
        try:
            with urllib.request.urlopen(f"{place.rstrip('/')}/{path}", timeout=30) as answer:  # noqa: S310
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code in {404, 410}:
                return None
            raise

    return read


def entries_of(read, size):
    """All entries of a log, from its bundles."""
    for index in range(-(-size // 256)):
        digits = f"{index:03d}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
        name = "tile/entries/" + "/".join([*(f"x{g}" for g in groups[:-1]), groups[-1]])
        width = min(256, size - 256 * index)
        raw = read(name if width == 256 else f"{name}.p/{width}") or read(name)
        at, count = 0, 0
        while raw and at < len(raw) and count < width:
            length = int.from_bytes(raw[at : at + 2], "big")
            if at + 2 + length > len(raw):
                break
            yield raw[at + 2 : at + 2 + length]
            at, count = at + 2 + length, count + 1
        if count < width:
            raise LogError(f"{name} has not the {width} entries that belong there")


def entry_of(value):
    """The log's entry of a root."""
    return jcs({"statement": value["statement"], "signature": value["signature"]}).encode()


class PublicLog:
    """Reads all of a log; `check` holds the roots of a trail against it, by docs/public-log.md."""

    def __init__(self, place, policy, problem, kept=None):
        self.problem, self.entries, self.kept, self.is_good = problem, [], None, False
        self.at, self.place = None, place
        policy = read_policy(policy)
        read = reader_of(place)
        try:
            data = read("checkpoint") or b""
            origin, size, root, self.at = believed_checkpoint(data, policy)
        except (ValueError, UnicodeDecodeError) as error:
            problem("log_checkpoint", place, error)
            return
        try:
            self.entries = list(entries_of(read, size))
        except LogError as error:
            problem("log_altered", place, error)
            return
        leaves = [sha256(b"\0" + entry) for entry in self.entries]
        if (tree(leaves) if leaves else sha256(b"")) != root:
            problem("log_altered", place, "the tree of its entries is not that of the checkpoint")
            return
        self.is_good = kept is None or self.extends(kept, policy, origin, leaves)

    def extends(self, kept, policy, origin, leaves):
        """Whether the log goes on from the checkpoint that an auditor has kept."""
        text, signatures = note_of(kept)
        before, count, old = checkpoint_of(text)
        if count > len(leaves) and before == origin:
            self.problem("log_truncated", self.place, f"it had {count} entries")
        elif before != origin or (tree(leaves[:count]) if count else sha256(b"")) != old:
            self.problem("log_fork", self.place, "not the log of the checkpoint that you kept")
        else:
            at = min(cosigned_of(policy, text, signatures).values(), default=None)
            self.kept = count, at
            return True
        return False

    def check(self, roots, now, retention_s=None, behind_s=LAG_S, age_s_max=None):
        """Roots are the statements with their signatures, in the order of their partitions."""
        if self.at is not None and age_s_max is not None and now - self.at > age_s_max:
            self.problem("log_stale", self.place, f"last cosigned {now - self.at:.0f} s ago")
        places, statements = {}, []
        for at, entry in enumerate(self.entries):
            statement = statement_of(entry)
            statements.append(statement)
            if statement is None:
                self.problem("log_entry", f"entry {at}", "no root")
            if entry in places:
                self.problem("log_repeats", f"entry {at}", f"it is entry {places[entry]} too")
            places.setdefault(entry, at)
        chains, seen = {}, set()
        for root in roots:
            at = places.get(entry_of(root))
            chains.setdefault(root["statement"]["chain"], []).append((root["statement"], at))
            seen.add(at)
        for name, own in chains.items():
            self.check_chain(name, sorted(own, key=lambda each: each[0]["sequence"]), statements)
        for at in places.values():
            if statements[at] is not None:
                self.check_time(at, statements[at])
                if at not in seen:
                    self.check_gone(at, statements[at], chains, (now, retention_s, behind_s))

    def check_chain(self, name, own, statements):
        logged = [(s["sequence"], at) for s, at in own if at is not None]
        if [at for _, at in logged] != sorted(at for _, at in logged):
            self.problem("log_order", name, "logged in another order")
        first, last = (logged[0][0], logged[-1][0]) if logged else (None, None)
        begin = statements[0]["at"] if statements and statements[0] else None
        for statement, at in own:
            if at is not None:
                continue
            number = statement["sequence"]
            if logged and number < first:
                continue  # From before the log: the chain's own hashes bind it.
            if not logged and begin is not None and statement["at"] < begin:
                continue
            is_tail = not logged or number > last
            if is_tail and (self.at is None or statement["at"] >= self.at - LAG_S):
                continue
            self.problem("unlogged", f"{name}#{number}", "not in the log")

    def check_time(self, at, statement):
        late = self.kept is not None and at >= self.kept[0] and self.kept[1] is not None
        if late and statement["at"] < self.kept[1] - LAG_S:
            self.problem("back_dated", f"entry {at}", "from before the checkpoint that you kept")
        if self.at is not None and statement["at"] > self.at + CLOCKS_S:
            self.problem("back_dated", f"entry {at}", "from after its cosignatures")

    def check_gone(self, at, statement, chains, terms):
        now, retention_s, behind_s = terms
        numbers = [s["sequence"] for s, _ in chains.get(statement["chain"], ())]
        number, said = statement["sequence"], statement["at"]
        is_front = not numbers or number < min(numbers)
        if is_front and retention_s is not None and said < now - retention_s:
            return
        is_tail = not numbers or number > max(numbers)
        if not (is_tail and behind_s and now - behind_s <= said <= now + CLOCKS_S):
            self.problem("unkept", f"entry {at}", f"{statement['chain']}#{number} is not there")


def statement_of(entry):
    """The statement of an entry, None if it is no root as the log writes one."""
    try:
        told = json.loads(entry)
        s = told["statement"]
        kinds = (s["chain"], str), (s["sequence"], int), (s["at"], (int, float))
        is_one = all(isinstance(v, t) for v, t in kinds) and entry == entry_of(told)
        return s if is_one and set(told) == {"statement", "signature"} else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
