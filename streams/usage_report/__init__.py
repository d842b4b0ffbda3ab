"""The ledger: the volume and outcomes of each class of work, in windows of time.

Belongs here: the fold that the live view and the exact one share, and the follower of the live
one. Does not: anything on a request's path.
"""

from streams.usage_report.live import LiveLedger
from streams.usage_report.projection import Endings, Line, UsageEntry, UsageRow

__all__ = ["Endings", "Line", "LiveLedger", "UsageEntry", "UsageRow"]
