"""Requests, answers and constraints against the evidence of them, for the second verifier.

Written from docs/evidence.md and RFCs 2104, 5869, 6901 and 8785; shares no code with Shunter.
"""

import base64
import hashlib
import hmac
import json
import os
from pathlib import Path

from trail_formats import canonical, columns, is_number, raw_of, sha256

STATUS = {
    "executed": "completed",
    "failed": "failed",
    "expired": "expired",
    "rejected": "rejected",
    "cancelled": "cancelled",
}
ROUTED = {"placed", "held", "failed", "expired", "rejected"}
# Columns of the row `profile` of a decision that limit where a request may go.
LIMITS = {"regions": 16, "precisions": 17, "pools": 18, "exclude_pools": 19, "max_cost_usd": 22}
GONE = "its salt is gone"
# Second runs, whose answers nobody gets.
BACKGROUND = "quality-reference"


def keys_of(salts, secret):
    """The key of digests by the id of a salt: HKDF-SHA-256, of which one block is enough."""
    found = {}
    for row in salts:
        value = row.get("value")
        try:
            extracted = hmac.digest(raw_of(value["salt"]), secret, "sha256")
            found[value["id"]] = hmac.digest(extracted, b"shunter/digest\x01", "sha256")
        except (KeyError, TypeError, ValueError):
            continue  # A tombstone, or something else that is no salt.
    return found


def digest(key, value):
    return hmac.new(key, canonical(value), hashlib.sha256).hexdigest()


def parts(request):
    """The parts of a request by their pointers."""
    found = {}
    for name, value in request.items():
        place = "/" + name.replace("~", "~0").replace("/", "~1")
        if name in {"constraints", "slo", "hints"} and isinstance(value, dict) and value:
            for inner, each in value.items():
                found[f"{place}/{inner.replace('~', '~0').replace('/', '~1')}"] = each
        else:
            found[place] = value
    return found


def leaves_of(request):
    """The leaves of a request, by their pointers in order."""
    found = parts(request)
    hashes = [sha256(canonical([pointer, found[pointer]])) for pointer in sorted(found)]
    blinds = hashlib.shake_256(b"".join(hashes)).digest(16 * len(hashes))
    return [sha256(blinds[16 * n : 16 * n + 16] + each) for n, each in enumerate(hashes)]


def whole(key, leaves):
    return base64.b64encode(hmac.digest(key, b"".join(leaves), "sha256")[:18]).decode()


def matches(told, key, digests):
    """Parts of a request that a client's copy or a disclosure is; empty if none."""
    if isinstance(told.get("parts"), list) and isinstance(told.get("leaves"), str):
        raw = raw_of(told["leaves"])
        leaves = [raw[at : at + 32] for at in range(0, len(raw), 32)]
        if whole(key, leaves) != digests.get("whole"):
            return []
        shown = []
        for each in told["parts"]:
            hashed = sha256(canonical([each["pointer"], each["value"]]))
            leaf = sha256(raw_of(each["blind"]) + hashed)
            if leaf not in leaves or leaves.index(leaf) != each["index"]:
                return []
            shown.append(each["pointer"])
        return shown
    found = ["body"] if digest(key, told.get("body")) == digests["hmac"] else []
    if "whole" in digests and whole(key, leaves_of(told)) == digests["whole"]:
        found.append("whole")
    return found


def compare_request(file, request_id, evidence, keys):
    """Return what a client's copy is of a request, in words, or None."""
    told = json.loads(Path(file).read_text())
    for row in evidence:
        value = row.get("value")
        if isinstance(value, dict) and value.get("request_id") == request_id:
            digests = value.get("request_digest")
            key = keys.get((digests or {}).get("salt"))
            if key is not None and (found := matches(told, key, digests)):
                return f"{file} is of {request_id}: {', '.join(found)}"
    return None


def secret_of():
    return os.environ.get("SHUNTER_EVIDENCE_SECRET", "shunter").encode()


def check_stories(evidence, problem):
    """Each request has one end, and no placement breaks what was asked for first."""
    stories = {}
    for row in evidence:
        value = row.get("value")
        try:
            name, step, topic = value["request_id"], value["step"], value["source"]["topic"]
            story = stories.setdefault(
                name, {"accepted": 0, "ended": 0, "dead": 0, "asked": [], "where": row["where"]}
            )
            is_ingest = topic.endswith(".requests")
            story["accepted"] += step in ROUTED and (is_ingest or is_second_run(value))
            story["ended"] += step in STATUS
            story["dead"] += step == "dead_lettered" and not is_ingest
            asked = limits_of(value)
            if asked is not None and value.get("attempt", 1) == 1:
                story["asked"].append(asked)
            went = columns("evidence", row["key"], value)
            if "pool" in went and story["asked"]:
                broken = [breaks(each, went) for each in story["asked"]]
                if all(broken):
                    problem("constraint", row["where"], f"{name}: {broken[-1]}")
        except (KeyError, TypeError, IndexError, AttributeError):
            continue  # It is told of as altered.
    for name, story in stories.items():
        ended = story["ended"] or min(story["dead"], story["accepted"])
        if story["accepted"] and ended > story["accepted"]:
            problem("ended_twice", name, f"accepted {story['accepted']}, ended {ended}")


def is_second_run(value):
    """Whether a step is of a second run as it begins: workers write these to the reroutes."""
    is_first = value.get("task") == BACKGROUND and value.get("attempt", 1) == 1
    return is_first and value["source"]["topic"].endswith(".reroutes")


def limits_of(value):
    """Limits of where a request may go; None of a step that doesn't say."""
    if isinstance(value.get("profile"), dict):
        return {name: value["profile"].get(name) for name in LIMITS}
    row = (value.get("decision") or {}).get("profile")
    if row is None:
        return None
    return {name: row[at] if len(row) > at else None for name, at in LIMITS.items()}


def breaks(limits, went):
    """Limits that a placement breaks; empty if none."""
    found = [
        name
        for name, place in (("regions", "region"), ("precisions", "precision"), ("pools", "pool"))
        if limits[name] is not None and went.get(place) not in limits[name]
    ]
    if went["pool"] in (limits["exclude_pools"] or ()):
        found.append("exclude_pools")
    most, cost = limits["max_cost_usd"], went.get("promised_cost_usd")
    return [*found, "max_cost_usd"] if None not in (most, cost) and cost > most else found


def check_results(results, evidence, keys, since, problem):
    """Each result is that of an end, with the answer that was signed, and each end has one.

    Ends from before `since` may have lost theirs to the retention of the topic. Returns how many
    answers could not be compared, because their salts are gone.
    """
    ends, gone = {}, 0
    for row in evidence:
        value = row.get("value")
        if is_end(value):
            ends.setdefault(value["request_id"], []).append(value)
    left = {name: len(each) for name, each in ends.items()}
    for row in results:
        try:
            name = row["value"]["id"]
            own = [e for e in ends.get(name, ()) if STATUS[e["step"]] == row["value"]["status"]]
            left[name] = left.get(name, 0) - 1
            if not own or left[name] < 0 or row["key"] != name:
                told = f"{name}: no such end, or none for a second result"
            else:
                told = difference(row["value"].get("response"), own, keys)
        except (KeyError, TypeError, AttributeError, ValueError):
            told = "no result"
        gone += told == GONE
        if told and told != GONE:
            problem("false_result", row["where"], told)
    for name, count in left.items():
        young = [e for e in ends.get(name, ()) if e["at"] > since and e.get("task") != BACKGROUND]
        if count > 0 and len(young) == len(ends[name]):
            problem("false_result", name, "it has ended, and its result is not there")
    return gone


def is_end(value):
    """Whether a record ends a request; of one that lacks what each has, it is told as altered."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("request_id"), str)
        and isinstance(value.get("step"), str)
        and is_number(value.get("at"))
        and value["step"] in STATUS
    )


def difference(answer, ends, keys):
    """The difference of an answer from the signed one; None if it is that."""
    digests = [e["response_digest"] for e in ends if e.get("response_digest")]
    if answer is None:
        is_lost = len(digests) == len(ends) and all(e.get("task") != BACKGROUND for e in ends)
        return "it has no answer, its evidence has" if is_lost else None
    known = [(keys[d["salt"]], d["hmac"]) for d in digests if d["salt"] in keys]
    if any(digest(key, answer["body"]) == told for key, told in known):
        return None
    return GONE if len(known) < len(digests) else "not the answer that was signed"
