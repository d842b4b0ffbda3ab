"""`shunter top`: the live view in a terminal.

Belongs here: columns, the screen, keys. Does not: what is shown (``streams.live``).
"""

from shunter.top.screen import screen
from shunter.top.session import look_once, watch

__all__ = ["look_once", "screen", "watch"]
