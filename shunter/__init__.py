"""The command line: one thin file per command, and the demo.

Belongs here: what users type and see. Does not: anything another process relies on.
"""

from shunter.entry import main

__all__ = ["main"]
