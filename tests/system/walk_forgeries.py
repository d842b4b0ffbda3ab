"""Each forgery of a real trail by hand, against the commands and the second verifier: a table.

    python tests/system/walk_forgeries.py --directory /tmp/walk

Runs a real Kafka, a router and workers, an archive and an installation key. The auditor has that
key's fingerprint and the heads of a first verification. A request that never ends is a finding ten
minutes after its deadline, so that the last step (`late`) waits for that. Steps may be run one by
one (`--only`), `set-up` first. Ends with exit code 1 where a forgery is not caught by both.
"""

import argparse
import asyncio
import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from forged_archive import archive_ways
from forged_segments import rewritten_in_place
from forged_topics import Topics, below, chains, read_topics, ways, written
from forgery_walk import LEAVING, Walk
from running_system import chat

from topics import Root, decode
from topics.embedded_broker.broker import EmbeddedBroker
from topics.signing.signed_root import statement_digest

COUNT = 120
CANARY = "the-canary-sings-of-nobody"
PARTITIONS = 4
GRACE_S = 600.0
STEPS = ("set-up", "topics", "revocations", "own-copy", "archive", "in-place", "late")


def _introduce(walk: Walk, prefix: str) -> str:
    """Make the keys of an installation; return the fingerprint of the offline one."""
    home = walk.directory / prefix
    pem, hosts, to = (home / name for name in ("installation.pem", "hosts.pem", "hosts.json"))
    made = walk.shunter("evidence", "keygen", pem, "--installation")
    walk.shunter("evidence", "keygen", hosts)
    signed = ("--signed-by", pem, "--output", to)
    walk.shunter("evidence", "introduce", hosts, "--may-introduce", "*", *signed)
    walk.shunter("evidence", "publish", to, prefix=prefix)
    return str(made.stdout.split()[1])


def _requests(count: int) -> list[dict[str, Any]]:
    """Requests of two tenants, with constraints, of a text that may be nowhere in the evidence."""
    found = []
    for n in range(count):
        request = chat(f"r-{1000 + n}", tenant=f"tenant-{n % 2}", deadline=time.time() + 600)
        request["body"]["messages"][0]["content"] = f"{CANARY} {n}"
        if n % 3 == 0:
            request["constraints"] = {"regions": ["eu-west"]}
        if n % 4 == 1:
            request["task"] = "summarization"
        found.append(request)
    return found


async def _served(walk: Walk, prefix: str, count: int) -> None:
    """Run an installation until it has served so many requests, one of them never."""
    async with walk.system(prefix) as system:
        fingerprint = await asyncio.to_thread(_introduce, walk, prefix)
        if prefix == "walk":
            walk.state.write_text(json.dumps({"trust": fingerprint}))
        system.start_all()
        warm = [chat(f"w-{p}", constraints={"pools": [p]}) for p in system.fleet["pools"]]
        asked = _requests(count)
        file = walk.directory / prefix / "requests.jsonl"
        file.write_text("".join(json.dumps(each) + "\n" for each in [*warm, *asked]))
        await system.publish({"id": "bad", "model": "x", "body": f"{CANARY} as a body"})
        words = ("submit", file, "--wait", "--timeout", 120, "--output", f"{prefix}-results.jsonl")
        await asyncio.to_thread(walk.shunter, *words, prefix=prefix)
        for each in asked[: count // 2]:
            # One after the other, so that a chain has many transactions.
            await system.publish(each | {"id": f"s{each['id']}"})
            await asyncio.sleep(0.05)
        await system.wait_for_results([f"s{each['id']}" for each in asked[: count // 2]])
        if prefix == "walk":
            system.kill(LEAVING)
            due = time.time() + 30
            lost = chat("never-ends", constraints={"pools": [LEAVING]}, deadline=due)
            await system.publish(lost)
            await system.wait_for_steps("never-ends", "placed")
            walk.state.write_text(json.dumps({"trust": fingerprint, "due": due}))
        # A heartbeat each second tells of the last roots.
        await asyncio.sleep(2.5)


async def set_up(walk: Walk) -> None:
    """Serve requests, archive the evidence, and verify both as an auditor does the first time."""
    await _served(walk, "walk", COUNT)
    await _served(walk, "other", 6)
    for prefix, to in (("walk", walk.archive), ("other", walk.directory / "other-archive")):
        walk.shunter("evidence", "archive", "--to", to, "--once", prefix=prefix)
    trusted = ("--trust", walk.trust, "--heads", walk.heads)
    walk.shunter("audit", "export", walk.directory / "trail", "--results")
    first = walk.first_says(*trusted)
    second = walk.second_says(walk.directory / "trail", *trusted, "--results")
    walk.tell("topics as they are", first, second, caught=False)
    first = walk.first_says("--archive", walk.archive, *trusted)
    second = walk.second_says("--archive", walk.archive, *trusted)
    walk.tell("archive as it is", first, second, caught=False)


def _heads_of_first(topics: Topics, to: Path) -> Path:
    """Write what an auditor has kept of the first root of the longest chain."""
    name, rows = next(iter(chains(topics).items()))
    statement = decode(Root, rows[0].value or b"").statement
    head = {"sequence": 0, "digest": statement_digest(statement), "at": statement.at}
    to.write_text(json.dumps({name: head}))
    return to


async def _on_copy(
    walk: Walk, topics: Topics, prefix: str, heads: Path, name: str, *, results: bool
) -> None:
    """Verify forged topics under a prefix of their own."""
    async with written(walk.servers, prefix, topics, PARTITIONS):
        kept = walk.directory / "kept.json"
        shutil.copy(heads, kept)
        trusted = ("--trust", walk.trust, "--heads", kept)
        trail = walk.directory / "forged"
        shutil.rmtree(trail, ignore_errors=True)
        without = () if results else ("--no-results",)
        with_ = ("--results",) if results else ()

        def both() -> tuple[str, str]:
            first = walk.first_says(*trusted, *without, prefix=prefix)
            walk.shunter("audit", "export", trail, *with_, prefix=prefix)
            return first, walk.second_says(trail, *trusted, *with_)

        walk.tell(name, *await asyncio.to_thread(both), caught=name != "a copy as it is")


async def forge_topics(walk: Walk) -> None:
    """Write the topics anew, forged, as who runs Kafka can."""
    topics = await read_topics(walk.servers, walk.system())
    other = await read_topics(walk.servers, walk.system("other"))
    longest = len(next(iter(chains(topics).values())))
    print(f"{len(topics['evidence'])} records, {len(topics['roots'])} roots, longest {longest}")
    assert all(below(row) for row in topics["roots"])
    for number, (name, way) in enumerate([("a copy as it is", lambda *_: None), *ways()]):
        if not walk.matching.search(name):
            continue
        forged = {kind: list(rows) for kind, rows in topics.items()}
        way(forged, other)
        heads = walk.heads
        if "a head of the first" in name:
            heads = _heads_of_first(topics, walk.directory / "first-heads.json")
        is_of_results = name.startswith("results") or number == 0
        await _on_copy(walk, forged, f"forged{number}", heads, name, results=is_of_results)


async def forge_revocations(walk: Walk) -> None:
    """A revocation that nobody has signed, a stranger's, and the installation key's."""
    topics = await read_topics(walk.servers, walk.system())
    key = chains(topics)[next(iter(chains(topics)))][0].told["statement"]["key"]
    home, stranger = walk.directory / "walk", walk.directory / "stranger.pem"
    if not stranger.exists():
        walk.shunter("evidence", "keygen", stranger, "--installation")
    for number, (who, words) in enumerate(
        {
            "nobody": (),
            "a stranger": ("--signed-by", stranger),
            "the installation key": ("--signed-by", home / "installation.pem"),
        }.items()
    ):
        prefix, trail = f"revoked{number}", walk.directory / "forged"
        async with written(walk.servers, prefix, topics, PARTITIONS):
            revoke = ("evidence", "revoke", key, "--reason", "lost", "--at", 1, *words)
            signed = walk.directory / f"{prefix}.json"
            to = ("--output", signed) if words else ()
            await asyncio.to_thread(walk.shunter, *revoke, *to, prefix=prefix)
            if words:
                publish = ("evidence", "publish", signed)
                await asyncio.to_thread(walk.shunter, *publish, prefix=prefix)
            shutil.rmtree(trail, ignore_errors=True)
            await asyncio.to_thread(walk.shunter, "audit", "export", trail, prefix=prefix)
            name = f"a key revoked by {who}"
            is_true = who == "the installation key"
            for trusted, caught in ((("--trust", walk.trust), is_true), ((), True)):
                first = await asyncio.to_thread(
                    walk.first_says, *trusted, "--no-results", prefix=prefix
                )
                second = walk.second_says(trail, *trusted)
                told = name if trusted else f"{name}, without --trust"
                walk.tell(told, first, second, caught=caught, kind="revoked_key")


async def own_copy(walk: Walk) -> None:
    """A client's own copy of a request; and no byte of a text in the evidence."""
    line = next(
        line
        for line in (walk.directory / "walk/requests.jsonl").read_text().splitlines()
        if '"regions"' in line
    )
    told, copy_ = json.loads(line), walk.directory / "request.json"
    trail = walk.directory / "trail"
    for name, changed, caught in (
        ("the client's own copy", told, False),
        ("a copy with another text", told | {"body": {"model": "x"}}, True),
        ("a copy of another's request", _requests(5)[4], True),
    ):
        copy_.write_text(json.dumps(changed))
        done = walk.shunter("audit", "match", told["id"], copy_, code=None)
        first = f"exit {done.returncode}: {(done.stdout + done.stderr).strip()}"
        done = walk.second(trail, "--trust", walk.trust, "--match", told["id"], copy_)
        second = f"exit {done.returncode}: {done.stdout.splitlines()[0]}"
        walk.tell(name, first, second, caught=caught)
    for field, value in {
        "region": {"constraints": {"regions": ["us-east"]}},
        "tenant": {"tenant": "tenant-1"},
        "deadline": {"deadline": told["deadline"] + 60},
    }.items():
        copy_.write_text(json.dumps(told | value))
        done = walk.shunter("audit", "match", told["id"], copy_, code=None)
        second = walk.second(trail, "--trust", walk.trust, "--match", told["id"], copy_)
        said = f"exit {done.returncode}: {' '.join(done.stdout.split())}"
        said_too = f"exit {second.returncode}: {second.stdout.splitlines()[0]}"
        is_told = (
            done.returncode == 1 and "not what was sent" in said and not said_too.endswith("whole")
        )
        walk.tell(f"a copy with another {field}", said, said_too, caught=False)
        walk.missed += not is_told
    held = [p for p in trail.glob("*.jsonl") if p.stem != "results" and CANARY in p.read_text()]
    walk.tell("texts in the evidence", *[f"exit {len(held)}: {held or 'none'}"] * 2, caught=False)


async def forge_archive(walk: Walk) -> None:
    """Change copies of the archive."""
    for name, way in archive_ways():
        if not walk.matching.search(name):
            continue
        forged, kept = walk.directory / "forged-archive", walk.directory / "kept.json"
        shutil.rmtree(forged, ignore_errors=True)
        shutil.copytree(walk.archive, forged)
        shutil.copy(walk.heads, kept)
        way(forged, walk.directory / "other-archive")
        trusted = ("--archive", forged, "--trust", walk.trust, "--heads", kept)
        walk.tell(name, walk.first_says(*trusted), walk.second_says(*trusted))


async def late(walk: Walk) -> None:
    """Wait until what never ended is due, and serve another request, so that time goes on."""
    due = json.loads(walk.state.read_text())["due"] + GRACE_S + 5
    print(f"waiting {max(0.0, due - time.time()):.0f} s for the grace of a request")
    await asyncio.sleep(max(0.0, due - time.time()))
    async with walk.system() as system:
        system.start("router", "premium-eu")
        after = chat("afterwards", constraints={"pools": ["premium-eu"]})
        await system.publish(after)
        await system.wait_for_results(["afterwards"])
        await asyncio.sleep(2.5)
    kept, trail = walk.directory / "kept.json", walk.directory / "late"
    shutil.copy(walk.heads, kept)
    trusted = ("--trust", walk.trust, "--heads", kept)
    walk.shunter("evidence", "archive", "--to", walk.archive, "--once")
    walk.shunter("audit", "export", trail)
    walk.tell(
        "a request without an end, on topics",
        walk.first_says(*trusted),
        walk.second_says(trail, *trusted, "--now"),
    )
    words = ("--archive", walk.archive, *trusted)
    walk.tell(
        "a request without an end, in the archive",
        walk.first_says(*words),
        walk.second_says(*words),
    )


async def in_place(walk: Walk, broker: EmbeddedBroker) -> None:
    """Rewrite a result and a record of evidence in the files of a broker that is down."""
    for end, mark in (("results", b'"content":"'), ("evidence", b'"tenant":"')):
        broker.stop()
        with rewritten_in_place(broker.data_dir, f"walk.{end}", mark) as place:
            broker.start()
            trail = walk.directory / "forged"
            shutil.rmtree(trail, ignore_errors=True)
            trusted = ("--trust", walk.trust)
            first = await asyncio.to_thread(walk.first_says, *trusted)
            await asyncio.to_thread(walk.shunter, "audit", "export", trail, "--results")
            walk.tell(f"a byte in {place}", first, walk.second_says(trail, *trusted, "--results"))
            broker.stop()
        broker.start()


async def run(directory: Path, only: list[str], matching: str) -> int:
    """Take the steps; return how many forgeries were missed."""
    directory.mkdir(parents=True, exist_ok=True)
    with EmbeddedBroker(data_dir=directory / "kafka") as broker:
        walk = Walk(directory, broker.bootstrap_servers, re.compile(matching))
        steps: dict[str, Callable[[], Any]] = {
            "set-up": lambda: set_up(walk),
            "topics": lambda: forge_topics(walk),
            "revocations": lambda: forge_revocations(walk),
            "own-copy": lambda: own_copy(walk),
            "archive": lambda: forge_archive(walk),
            "in-place": lambda: in_place(walk, broker),
            "late": lambda: late(walk),
        }
        print("| forgery | shunter audit verify | deploy/verify_trail.py |\n| --- | --- | --- |")
        for name in STEPS:
            if name in only:
                await steps[name]()
    print(f"\n{len(walk.rows)} rows, {walk.missed} not as they should be")
    return walk.missed


def main() -> None:
    """Take all steps, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="kept between steps")
    parser.add_argument("--only", default=",".join(STEPS), help=f"of {', '.join(STEPS)}")
    parser.add_argument("--matching", default="", help="of topics and archive, names that match")
    asked = parser.parse_args()
    home, only = asked.directory.absolute(), asked.only.split(",")
    sys.exit(bool(asyncio.run(run(home, only, asked.matching))))


if __name__ == "__main__":
    main()
