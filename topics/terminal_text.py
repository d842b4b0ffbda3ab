"""Escape untrusted text for a terminal: it can't move the cursor, colour, hide or reverse text.

Ids, tenants and messages come from clients. A control sequence among them could clear a screen or
set its title, a line break could forge a line of a log, and a bidirectional override could show an
id as another.
"""

import re

# Controls of ASCII and Latin-1, line and paragraph separators, marks and overrides of direction,
# and halves of characters, which no encoding takes.
_SHARED = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_SHARED}]")
_UNSAFE_IN_LINE = re.compile(f"[{_SHARED}\t\n]")


def visible(text: str) -> str:
    r"""Return text with its controls escaped, as ``\x1b``; line breaks and tabs stay."""
    return _UNSAFE.sub(_escaped, text)


def visible_line(text: str) -> str:
    r"""Return text with its controls escaped, including line breaks and tabs, as ``\n``."""
    return _UNSAFE_IN_LINE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
