"""A second verifier of Shunter's evidence, which shares no code with the first.

    shunter audit export DIR && python deploy/verify_trail.py DIR

Written from docs/evidence.md alone. Wants Python 3.11 and the package ``cryptography``. Prints one
line for each problem, and ends with exit code 1 where there is any. It checks what is signed and
chained, not what the evidence says.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def number(x):
    """A double as ECMAScript writes it (RFC 8785, 3.2.2.3)."""
    if x == 0:
        return "0"
    mantissa, _, exponent = f"{abs(x)!r}".partition("e")
    whole, _, part = mantissa.partition(".")
    part = "" if part == "0" else part
    digits = (whole + part).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + part) - len(digits))
    digits = digits.rstrip("0")
    k, n = len(digits), point
    if k <= n <= 21:
        text = digits + "0" * (n - k)
    elif 0 < n <= 21:
        text = digits[:n] + "." + digits[n:]
    elif -6 < n <= 0:
        text = "0." + "0" * -n + digits
    else:
        e = f"e{'+' if n > 0 else '-'}{abs(n - 1)}"
        text = digits[0] + ("." + digits[1:] if k > 1 else "") + e
    return ("-" if x < 0 else "") + text


def jcs(v):
    """Canonical JSON (RFC 8785)."""
    if isinstance(v, dict):
        names = sorted(v, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{jcs(name)}:{jcs(v[name])}" for name in names) + "}"
    if isinstance(v, list):
        return "[" + ",".join(map(jcs, v)) + "]"
    if isinstance(v, bool) or v is None:
        return {True: "true", False: "false", None: "null"}[v]
    if isinstance(v, int | float):
        return number(float(v)) if abs(v) >= 2**53 or isinstance(v, float) else str(v)
    return json.dumps(v, ensure_ascii=False)


def sha256(data):
    return hashlib.sha256(data).digest()


def tree(hashes):
    """The Merkle tree hash of RFC 6962 over leaf hashes, by its recursive definition."""
    if len(hashes) == 1:
        return hashes[0]
    k = 1 << (len(hashes) - 1).bit_length() - 1
    return sha256(b"\x01" + tree(hashes[:k]) + tree(hashes[k:]))


def signed(key, purpose, statement, signature):
    try:
        message = f"shunter/{purpose}\0{jcs(statement)}".encode()
        key.verify(base64.b64decode(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


class Trail:
    def __init__(self, directory):
        self.problems = []
        self.lines = {
            k: self.read(Path(directory, f"{k}.jsonl")) for k in ("evidence", "roots", "keys")
        }
        self.keys, self.revoked, self.heads = {}, {}, []

    @staticmethod
    def read(path):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["where"] = f"{path.stem}/{row['partition']}@{row['offset']}"
        return rows

    def problem(self, kind, where, what):
        self.problems.append(kind)
        print(f"{kind}: {where}: {what}")

    def read_keys(self):
        for row in self.lines["keys"]:
            entry = row.get("value") or {}
            if revoked := entry.get("revocation"):
                at = min(revoked["at"], self.revoked.get(revoked["key"], revoked["at"]))
                self.revoked[revoked["key"]] = at
            if heads := entry.get("heads"):
                self.heads.append(heads)
            if published := entry.get("published"):
                statement = published["statement"]
                raw = base64.b64decode(statement["public_key"])
                key = Ed25519PublicKey.from_public_bytes(raw)
                is_named = sha256(raw).hex()[:32] == statement["key"]
                if is_named and signed(key, "key", statement, published["signature"]):
                    self.keys[statement["key"]] = (key, statement)

    def refusal(self, s, purpose, signature):
        """Why a statement is not believed, or None."""
        if s["key"] not in self.keys:
            return "unknown_key"
        key, own = self.keys[s["key"]]
        if own["writer"] != s["writer"] or not signed(key, purpose, s, signature):
            return "forged"
        if s["at"] >= self.revoked.get(s["key"], float("inf")):
            return "revoked_key"
        until = own["valid_until"] or float("inf")
        return None if own["valid_from"] <= s["at"] <= until else "outside_validity"

    def read_roots(self):
        """Return the leaves that are signed: hash to (chain, its number in the chain)."""
        chains, leaves, self.last, self.digests = {}, {}, {}, {}
        for row in self.lines["roots"]:
            if "value" in row:
                chains.setdefault(row["value"]["statement"]["chain"], []).append(row)
            else:
                self.problem("unreadable", row["where"], "no root")
        for chain, rows in sorted(chains.items()):
            before, count = None, 0
            for row in sorted(rows, key=lambda r: r["value"]["statement"]["sequence"]):
                s, where = row["value"]["statement"], row["where"]
                raw = base64.b64decode(row["value"]["leaves"])
                hashes = [raw[i : i + 32] for i in range(0, len(raw), 32)]
                if refused := self.refusal(s, "root", row["value"]["signature"]):
                    self.problem(refused, where, f"{chain}#{s['sequence']}")
                elif len(hashes) != s["count"] or tree(hashes).hex() != s["tree"]:
                    self.problem("broken_root", where, f"{chain}#{s['sequence']}")
                elif self.follows(before, s, row):
                    for leaf in hashes:
                        leaves[leaf] = (chain, count)
                        count += 1
                    before = s
                    self.digests[chain, s["sequence"]] = sha256(jcs(s).encode()).hex()
            if before:
                self.last[chain] = before
        return leaves

    def follows(self, before, s, row):
        where, name = row["where"], f"{s['chain']}#{s['sequence']}"
        if abs(row["at"] - s["at"]) > 300:
            self.problem("back_dated", where, f"{name} was written at another time")
        if before is None:
            if s["sequence"] == 0 and s["previous"] is not None:
                self.problem("broken_link", where, name)
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

    def read_evidence(self, leaves):
        seen, last = set(), {}
        for row in self.lines["evidence"]:
            value = row.get("value")
            leaf = sha256(b"\0" + jcs(value).encode()) if "value" in row else b""
            if leaf not in leaves:
                self.problem("altered", row["where"], "no signed root is over it")
                continue
            if leaf in seen:
                self.problem("replayed", row["where"], "it stands before already")
                continue
            seen.add(leaf)
            chain, at = leaves[leaf]
            if at < last.get((row["partition"], chain), -1):
                self.problem("reordered", row["where"], f"leaf {at} of {chain}")
            last[row["partition"], chain] = max(at, last.get((row["partition"], chain), -1))
            if row["key"] != value["request_id"]:
                self.problem("wrong_key", row["where"], f"{row['key']} for {value['request_id']}")
        for leaf, (chain, at) in leaves.items():
            if leaf not in seen:
                self.problem("missing", chain, f"leaf {at}")

    def check_heads(self):
        for heads in self.heads:
            s = heads["statement"]
            if self.refusal(s, "heads", heads["signature"]) is None:
                for chain, head in s["heads"].items():
                    last = self.last.get(chain)
                    if last is None or last["sequence"] < head["sequence"]:
                        self.problem("truncated", chain, f"{s['writer']} names #{head['sequence']}")
                    elif (
                        self.digests.get((chain, head["sequence"]), head["digest"])
                        != head["digest"]
                    ):
                        self.problem(
                            "fork", chain, f"{s['writer']} names another #{head['sequence']}"
                        )


def main(directory):
    trail = Trail(directory)
    trail.read_keys()
    trail.read_evidence(trail.read_roots())
    trail.check_heads()
    print(f"{len(trail.lines['evidence'])} records, {len(trail.last)} chains:", end=" ")
    print(f"{len(trail.problems)} problems" if trail.problems else "verified")
    return bool(trail.problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
