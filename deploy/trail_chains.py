"""Signatures, chains and leaves of a trail, for the second verifier.

Written from docs/evidence.md alone; shares no code with Shunter.
"""

import math

from trail_formats import canonical, is_number, jcs, key_of, raw_of, sha256, signed, tree
from trail_results import STATUS, check_stories

MEMBERS = {
    "published": {"statement", "signature", "endorser", "endorsement"},
    "revocation": {"key", "at", "reason", "by", "public_key", "signature"},
    "introduction": {"statement", "public_key", "signature"},
    "heads": {"statement", "signature"},
}
ROOT = {
    "chain": str,
    "sequence": int,
    "previous": (str, type(None)),
    "count": int,
    "tree": str,
    "at": float,
    "writer": str,
    "key": str,
}


class Trail:
    """``read`` returns the lines of a kind; ``since`` is what retention may have taken before.

    ``fresh`` records may lack their roots. Evidence is read last, as an archiver writes it first.
    """

    def __init__(
        self, read, trust=(), heads=None, since=-math.inf, now=None, accept=False, fresh=0
    ):
        self.problems, self.fresh, self.fresh_at = [], fresh, []
        self.trust, self.kept, self.since, self.accept = set(trust), heads or {}, since, accept
        self.now = now
        self.lines = {kind: read(kind) for kind in ("keys", "roots", "evidence")}
        for kind, rows in self.lines.items():
            self.placed(rows, kind)
        self.keys, self.revoked, self.introduced, self.heads = {}, {}, {}, []
        self.heard = -math.inf

    @staticmethod
    def placed(rows, kind):
        for row in rows:
            row["where"] = f"{kind}/{row['partition']}@{row['offset']}"
        return rows

    def signed_roots(self):
        return [row["value"] for row in self.lines["roots"] if self.is_root(row)]

    def problem(self, kind, where, what):
        self.problems.append(kind)
        print(f"{kind}: {where}: {what}")

    def check(self):
        self.read_keys()
        leaves = self.read_roots()
        self.read_evidence(leaves)
        self.check_heads()
        self.check_ends()
        check_stories(self.lines["evidence"], self.problem)

    def read_keys(self):
        readers = {
            "published": self.read_published,
            "revocation": self.read_revocation,
            "introduction": self.read_introduction,
            "heads": self.read_heads,
        }
        for row in self.lines["keys"]:
            if "value" in row and row["value"] is None:
                continue  # A tombstone.
            try:
                members = {k: v for k, v in row["value"].items() if v is not None and k in readers}
                ((kind, entry),) = members.items()
                if not MEMBERS[kind].issuperset(entry):
                    entry = {}  # What is not signed could say anything.
                name = readers[kind](entry)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self.problem("false_entry", row["where"], error)
                continue
            if name is None or name != row["key"]:
                self.problem("false_entry", row["where"], "not signed as it says, or not its key")

    def read_published(self, entry):
        s = entry["statement"]
        key = key_of(s["public_key"], s["key"])
        if key is None or not is_span(s) or not signed(key, "key", s, entry["signature"]):
            return None
        if (entry.get("endorser") is None) != (entry.get("endorsement") is None):
            return None
        self.keys[s["key"]] = (key, s)
        return f"key/{s['key']}"

    def read_revocation(self, entry):
        by, said = entry.get("by"), {k: entry[k] for k in ("at", "key", "reason")}
        is_signed = entry.get("signature") is not None
        if not is_number(said["at"]):
            return None
        if is_signed:
            key = key_of(entry["public_key"], by)
            if key is None or not signed(key, "revocation", said | {"by": by}, entry["signature"]):
                return None
        if not self.trust or (is_signed and (by in self.trust or by == said["key"])):
            self.revoked[said["key"]] = min(said["at"], self.revoked.get(said["key"], said["at"]))
        return f"revoked/{said['key']}"

    def read_introduction(self, entry):
        s = entry["statement"]
        key = key_of(entry["public_key"], s["by"])
        if key is None or not is_span(s) or not isinstance(s["writer"], str):
            return None
        if not signed(key, "introduction", s, entry["signature"]):
            return None
        self.introduced.setdefault(s["key"], []).append(s)
        return f"introduced/{s['key']}"

    def read_heads(self, entry):
        s = entry["statement"]
        if set(s) != {"writer", "key", "at", "heads"} or not isinstance(s["at"], float):
            return None
        if not all(isinstance(text, str) for text in (s["key"], s["writer"], entry["signature"])):
            return None
        if any(set(head) != {"sequence", "digest", "at"} for head in s["heads"].values()):
            return None
        if not all(is_number(h[name]) for h in s["heads"].values() for name in ("sequence", "at")):
            return None
        self.heads.append(entry)
        return f"heads/{entry['statement']['key']}"

    def refusal(self, s, purpose, signature):
        """Why a statement is not believed, or None."""
        if s["key"] not in self.keys:
            return "unknown_key"
        key, own = self.keys[s["key"]]
        if own["writer"] != s["writer"] or not signed(key, purpose, s, signature):
            return "forged"
        if s["at"] >= self.revoked.get(s["key"], math.inf):
            return "revoked_key"
        if not holds(own, s["at"]):
            return "outside_validity"
        if self.trust and not self.is_introduced(s["key"], s["writer"], s["at"], False, 5):
            return "unknown_key"
        return None

    def is_introduced(self, key, writer, at, introduces, depth):
        """Whether a line of introductions that hold at that time leads to a trusted key."""
        return depth > 0 and any(
            s["introduces"] is introduces
            and holds(s, at)
            and at < self.revoked.get(s["by"], math.inf)
            and (
                writer.startswith(s["writer"][:-1])
                if s["writer"][-1:] == "*"
                else writer == s["writer"]
            )
            and (s["by"] in self.trust or self.is_introduced(s["by"], writer, at, True, depth - 1))
            for s in self.introduced.get(key, ())
        )

    def is_root(self, row):
        """Whether a record has the members of a root, of their types, and no other."""
        value = row.get("value")
        try:
            s = value["statement"]
            leaves, _ = raw_of(value["leaves"]), raw_of(value["signature"])
            return (
                set(value) == {"statement", "signature", "leaves"}
                and set(s) == set(ROOT)
                and all(isinstance(s[k], t) and not isinstance(s[k], bool) for k, t in ROOT.items())
                and len(leaves) % 32 == 0
            )
        except (KeyError, TypeError, ValueError):
            return False

    def read_roots(self):
        """Return the leaves that are signed: hash to (chain, its number in the chain, root)."""
        leaves, self.last, self.digests = {}, {}, {}
        for chain, rows in sorted(self.read_chains().items()):
            before, count = None, 0
            for row in sorted(rows, key=lambda r: r["value"]["statement"]["sequence"]):
                s, where = row["value"]["statement"], row["where"]
                raw = raw_of(row["value"]["leaves"])
                hashes = [raw[i : i + 32] for i in range(0, len(raw), 32)]
                if refused := self.refusal(s, "root", row["value"]["signature"]):
                    self.problem(refused, where, f"{chain}#{s['sequence']}")
                elif not hashes or len(hashes) != s["count"] or tree(hashes).hex() != s["tree"]:
                    self.problem("broken_root", where, f"{chain}#{s['sequence']}")
                elif self.follows(before, s, row):
                    for leaf in hashes:
                        leaves[leaf] = (chain, count, row)
                        count += 1
                    before = s
                    self.digests[chain, s["sequence"]] = sha256(jcs(s).encode()).hex()
            if before:
                self.last[chain] = before
        return leaves

    def read_chains(self):
        """Return the records that are roots, by chain."""
        chains, order = {}, {}
        for row in self.lines["roots"]:
            if not self.is_root(row):
                self.problem("unreadable", row["where"], "no root")
                continue
            s = row["value"]["statement"]
            chains.setdefault(s["chain"], []).append(row)
            if row["key"] != s["chain"]:
                self.problem("wrong_key", row["where"], f"{row['key']} for {s['chain']}")
            place = row["partition"], s["chain"]
            before = order.get(place, s["sequence"])
            if s["sequence"] < before:
                self.problem("reordered", row["where"], f"#{s['sequence']} behind #{before}")
            order[place] = max(s["sequence"], before)
        return chains

    def follows(self, before, s, row):
        where, name = row["where"], f"{s['chain']}#{s['sequence']}"
        if abs(row["at"] - s["at"]) > 300:
            self.problem("back_dated", where, f"{name} was written at another time")
        if before is None:
            self.begins(s, row)
            return True
        if s["sequence"] == before["sequence"]:
            self.problem("replayed" if s == before else "fork", where, name)
            return False
        if s["at"] < before["at"]:
            self.problem("back_dated", where, f"{name} is before its predecessor")
        if s["sequence"] != before["sequence"] + 1:
            self.problem("gap", where, f"before {name}")
        elif s["previous"] != sha256(jcs(before).encode()).hex():
            self.problem("broken_link", where, name)
        return True

    def begins(self, s, row):
        """Check the first root of a chain against the head that an auditor has kept."""
        where, name, kept = row["where"], f"{s['chain']}#{s['sequence']}", self.kept.get(s["chain"])
        if s["sequence"] == 0:
            if s["previous"] is not None:
                self.problem("broken_link", where, name)
        elif kept and kept["sequence"] == s["sequence"] - 1:
            if kept["digest"] != s["previous"]:
                self.problem(
                    "fork", where, f"{name} names another one before it than you have kept"
                )
            elif kept["at"] > self.since and not self.accept:
                self.problem("gap", where, f"what was before {name} is not so old")
        elif max(s["at"], row["at"]) > self.since and (
            not self.accept or (kept and kept["sequence"] < s["sequence"])
        ):
            self.problem("gap", where, f"before {name}, which is the first")

    def read_evidence(self, leaves):
        seen, first, last, starts = set(), {}, {}, {}
        for row in self.lines["evidence"]:
            value, partition = row.get("value"), row["partition"]
            starts.setdefault(partition, row["offset"])
            leaf = leaf_of(row)
            if leaf not in leaves and len(self.fresh_at) < self.fresh:
                self.fresh_at.append(row["where"])
                continue
            if leaf not in leaves:
                self.problem("altered", row["where"], "no signed root is over it")
                continue
            if leaf in seen:
                self.problem("replayed", row["where"], "it stands before already")
                continue
            seen.add(leaf)
            chain, at, _ = leaves[leaf]
            first.setdefault((partition, chain), at)
            if at < last.get((partition, chain), -1):
                self.problem("reordered", row["where"], f"leaf {at} of {chain}")
            last[partition, chain] = max(at, last.get((partition, chain), -1))
            if row["key"] != value["request_id"]:
                self.problem("wrong_key", row["where"], f"{row['key']} for {value['request_id']}")
        begun = [partition for partition, offset in starts.items() if offset]
        gone = 0
        for leaf, (chain, at, row) in leaves.items():
            if leaf not in seen:
                is_old = max(row["at"], row["value"]["statement"]["at"]) <= self.since
                is_before = any(at < first.get((p, chain), math.inf) for p in begun)
                if is_old and is_before and gone < sum(starts.values()):
                    gone += 1
                else:
                    self.problem("missing", chain, f"leaf {at}")

    def check_heads(self):
        for chain, head in self.kept.items():
            self.check_head(chain, head, "you have kept")
        for heads in self.heads:
            s, where = heads["statement"], f"heads/{heads['statement']['key']}"
            refused = self.refusal(s, "heads", heads["signature"])
            if refused is None:
                self.heard = max(self.heard, s["at"])
                for chain, head in s["heads"].items():
                    self.check_head(chain, head, f"{s['writer']} names")
            elif refused in {"forged", "unknown_key"}:
                self.problem("false_entry", where, refused)

    def check_head(self, chain, head, who):
        last, name = self.last.get(chain), f"#{head['sequence']}"
        if last is None and head["at"] <= self.since:
            return
        if last is None or last["sequence"] < head["sequence"]:
            self.problem("truncated", chain, f"{who} {name}")
        elif self.digests.get((chain, head["sequence"]), head["digest"]) != head["digest"]:
            self.problem("fork", chain, f"{who} another {name}")

    def check_ends(self):
        """Each accepted request has ended ten minutes after its deadline.

        Time is that of the newest root or heartbeat, unless the auditor knows better.
        """
        newest = self.heard
        for row in self.lines["roots"]:
            if self.is_root(row) and row["value"]["statement"]["chain"] in self.last:
                newest = max(newest, min(row["at"], row["value"]["statement"]["at"]))
        now, due, ended = max(newest, self.now or newest), {}, set()
        for row in self.lines["evidence"]:
            value = row.get("value")
            try:
                if value["step"] in STATUS or value["step"] == "dead_lettered":
                    ended.add(value["request_id"])
                elif value["step"] != "quoted" and value["source"]["topic"].endswith(".requests"):
                    told = value.get("profile") or {}
                    rows = (value.get("decision") or {}).get("profile") or [None, None]
                    due[value["request_id"]] = told.get("deadline", rows[1])
            except (KeyError, TypeError, IndexError, AttributeError):
                continue  # It is told of as altered.
        for name, deadline in due.items():
            if name not in ended and is_number(deadline) and deadline + 600 < now:
                self.problem("unended", name, "it was accepted, and due")


def leaf_of(row):
    """The leaf of a record; empty if it is no JSON, or has no canonical form."""
    try:
        return sha256(b"\0" + canonical(row["value"]))
    except (KeyError, ValueError):
        return b""


def is_span(s):
    """Whether a statement tells from when to when it holds."""
    return is_number(s["valid_from"]) and (s["valid_until"] is None or is_number(s["valid_until"]))


def holds(s, at):
    return s["valid_from"] <= at and (s["valid_until"] is None or at <= s["valid_until"])
