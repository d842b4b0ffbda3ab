"""The terms of a verification: what an auditor accepts as gone, late, or not signed yet.

None of them is read from the trail: who could write it could have written them.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from topics.registry import RESULTS_MS
from topics.settings import RETENTION_DAYS

# Tolerance between a root's time and the broker's: two clocks, and a slow transaction.
CLOCKS_APART_S_MAX = 300.0
# Between the deadline of an accepted request and its end: a crash, a takeover, another try.
GRACE_S = 600.0
# Records that came while the topics were read, and whose roots were not read.
FRESH_MAX = 100_000
# Kafka deletes evidence by the time of the host that wrote it.
_HOSTS_APART_S_MAX = 3600.0


@dataclass(frozen=True, slots=True)
class Terms:
    """Times are epoch seconds.

    Records under roots up to ``evidence_since``, and roots up to ``roots_since``, may be gone from
    the front, and results of ends up to ``results_since``. ``now`` is the auditor's clock; without
    it time is that of the newest root or heartbeat.
    ``accept_beginnings`` takes a chain as it begins, whatever came before.
    """

    evidence_since: float = -math.inf
    roots_since: float = -math.inf
    now: float | None = None
    accept_beginnings: bool = False
    results_since: float = -math.inf


def topic_terms(
    now: float,
    retention_days: float | None = None,
    *,
    accept_beginnings: bool = False,
    settings_days: float = 0.0,
) -> Terms:
    """Return the terms for topics that are declared to keep evidence for so many days.

    Args:
        now: epoch seconds.
        retention_days: as declared; 30 if None.
        accept_beginnings: take a chain as it begins.
        settings_days: how long the topic keeps evidence by its own settings. If that is longer than
            declared, what is younger was not taken by them.
    """
    declared = RETENTION_DAYS["standard"] if retention_days is None else retention_days
    since = now - max(declared, settings_days) * 86_400 + _HOSTS_APART_S_MAX
    # Roots are kept for longer, but need not be where nothing is left below them: a chain may have
    # had nothing to sign for days at the moment when its older roots went.
    results_since = now - RESULTS_MS / 1000 + _HOSTS_APART_S_MAX
    return Terms(since, since, now, accept_beginnings, results_since)


def archive_terms(
    now: float, retention_days: float | None = None, *, accept_beginnings: bool = False
) -> Terms:
    """Return the terms for an archive that deletes whole days; nothing may be gone where None."""
    if retention_days is None:
        return Terms(accept_beginnings=accept_beginnings)
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since = today.timestamp() - retention_days * 86_400
    return Terms(since + CLOCKS_APART_S_MAX, since, None, accept_beginnings)
