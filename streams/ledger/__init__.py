"""The ledger: what each class of work was, and what came of it, in windows of time.

Belongs here: the fold that the live view and the exact one share, and the Faust app of the live
one. Does not: anything that a request's way depends on.
"""

from streams.ledger.fold import Ending, Endings, Line, Row
from streams.ledger.live import run_ledger

__all__ = ["Ending", "Endings", "Line", "Row", "run_ledger"]
