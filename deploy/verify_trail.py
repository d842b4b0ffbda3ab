"""A second verifier of Shunter's evidence, which shares no code with the first.

    shunter audit export DIR && python deploy/verify_trail.py DIR --trust FINGERPRINT
    python deploy/verify_trail.py --archive DIR --trust FINGERPRINT --heads heads.json

Written from docs/evidence.md alone. Wants Python 3.11 and the package ``cryptography``, and of an
archive ``pyarrow``. Prints one line for each problem, and ends with exit code 1 where there is any.

Checked: signatures and leaves, the order and the links of chains, whose keys they are (--trust),
revocations, kept heads (--heads), an archive's columns, that what was due has ended, once, within
its constraints; the public log (--log, --policy, --checkpoint); results against ends and digests
(--results, of `shunter audit export --results`). Not checked: statistics of Parquet files, whether
what was signed is true.
"""

import argparse
import json
import math
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from trail_chains import Trail
from trail_formats import archive_reader, export_lines
from trail_log import PublicLog
from trail_results import check_results, compare_request, keys_of, secret_of

DAY = 86_400
# Of results on Kafka.
RESULTS_DAYS = 7


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", help="as `shunter audit export` writes it")
    parser.add_argument("--archive", action="store_true", help="it is an archive, of Parquet files")
    parser.add_argument("--trust", action="append", default=[], metavar="FINGERPRINT")
    parser.add_argument("--heads", type=Path, help="the heads that you have kept")
    parser.add_argument("--retention-days", type=float, help="what is older may be gone")
    parser.add_argument("--accept-beginnings", action="store_true")
    parser.add_argument("--now", action="store_true", help="what is due by this clock has ended")
    parser.add_argument("--fresh", type=int, default=0, help="so many may lack their roots")
    parser.add_argument("--results", action="store_true", help="the export has results and salts")
    parser.add_argument("--log", help="the public log: a directory or the URL of a web server")
    parser.add_argument("--policy", type=Path, help="log and witnesses to believe")
    parser.add_argument("--log-age", type=float, default=1, help="hours since it was cosigned")
    parser.add_argument("--checkpoint", type=Path, help="the log's checkpoint that you have kept")
    parser.add_argument(
        "--match",
        nargs=2,
        metavar=("ID", "FILE"),
        help="a client's copy of a request, or a disclosure; needs salts.jsonl, as of --results",
    )
    asked = parser.parse_args()
    if (asked.log is None) != (asked.policy is None):
        parser.error("--log needs --policy, and the other way round")
    return asked


def main():
    asked, found, now = parsed(), [], time.time()
    heads = json.loads(asked.heads.read_text()) if asked.heads else None
    days = asked.retention_days
    since = -math.inf if days is None else now - days * DAY + 3600

    def problem(kind, where, what):
        found.append(kind)
        print(f"{kind}: {where}: {what}")

    def read(kind):
        return export_lines(asked.directory, kind)

    logged = None
    if asked.log:
        kept = asked.checkpoint.read_bytes() if asked.checkpoint else None
        logged = PublicLog(asked.log, asked.policy.read_text(), problem, kept)
    export = read
    if asked.archive:
        read = archive_reader(asked.directory, problem)
    terms = {"accept": asked.accept_beginnings, "fresh": asked.fresh}
    terms["now"] = now if asked.now else None
    trail = Trail(read, asked.trust, heads, since, **terms)
    trail.check()
    if logged is not None and logged.is_good:
        kept_s = None if days is None else days * DAY
        # An export is made from an archive, or after the log was read: it may be a round behind.
        logged.check(trail.signed_roots(), now, kept_s, age_s_max=asked.log_age * 3600)
    keys = keys_of(export("salts"), secret_of()) if asked.results or asked.match else {}
    gone = 0
    if asked.results:
        gone = check_results(
            trail.placed(export("results"), "results"),
            trail.lines["evidence"],
            keys,
            now - RESULTS_DAYS * DAY + 3600,
            problem,
        )
    if asked.match:
        told = compare_request(asked.match[1], asked.match[0], trail.lines["evidence"], keys)
        print(told or f"{asked.match[1]} is nothing that {asked.match[0]} was")
        found += [] if told else ["no_match"]
    problems = len(found) + len(trail.problems)
    print(f"{len(trail.lines['evidence'])} records, {len(trail.last)} chains:", end=" ")
    print(f"{problems} problems" if problems else "verified, so far as it was checked")
    if trail.fresh_at:
        print(f"not checked: what no root is over, by --fresh: {', '.join(trail.fresh_at)}")
    say_what_was_not_checked(asked, gone, logged)
    return bool(problems)


def say_what_was_not_checked(asked, gone, logged):
    if not asked.trust:
        print("not checked: whose the keys are (--trust)")
    else:
        print("not checked: whether a revocation is withheld")
    if logged is not None and logged.at is not None:
        at = f"{datetime.fromtimestamp(logged.at, UTC):%Y-%m-%dT%H:%M:%SZ}"
        print(f"not checked: what was signed after {at}, when the log was last cosigned")
    if not asked.heads and not asked.log:
        print("not checked: whether the newest was cut off by who runs the system (--heads, --log)")
    if not asked.log:
        print("not checked: whether all was made anew by who has the keys (--log)")
    if not asked.results:
        print("not checked: results (--results)")
    if gone:
        print(f"not checked: {gone} answers, whose salts are gone")
    print("not checked: offsets, partitions and Kafka's times of evidence, which nobody signed")
    print("not checked: whether what was signed is true")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        print(f"can't be read: {error}", file=sys.stderr)
        sys.exit(2)
