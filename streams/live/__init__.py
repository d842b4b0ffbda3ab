"""The live view: the current state of the whole system, folded from its topics.

Belongs here: the fold, its snapshot, following the topics, and the page that shows it. Does not:
the terminal (``shunter.top``).
"""

from streams.live.follower import LiveFollower
from streams.live.rows import snapshot_of
from streams.live.snapshot import Snapshot
from streams.live.view import LiveView

__all__ = ["LiveFollower", "LiveView", "Snapshot", "snapshot_of"]
