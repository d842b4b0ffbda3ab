"""Credentials: masked in every line that a process logs.

Settings keep them apart, but errors repeat them: a library's error names the URL that it was
given, a server's the header. So each line is searched before it is written.
"""

import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

MASK = "***"

# Environment variables that hold a credential, by the words of their names.
_NAMED = re.compile(
    r"(^|_)(PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|HEADERS|API_KEY|ACCESS_KEY|ACCOUNT_KEY"
    r"|CONNECTION_STRING)(_|$)"
)
_NOT_NAMED = re.compile(r"_(FILE|PATH|URL)$")
# Of those whose value is a list of headers, `name=value` separated by commas.
_HEADERS = re.compile(r"(^|_)HEADERS$")
_SCHEME_OF_HEADER = re.compile(r"^(Bearer|Basic|Token|ApiKey)\s+", re.IGNORECASE)
# What is shorter would be found in every word.
_CHARACTERS_MIN = 4

# Of a URL, up to the last @: a secret may hold a slash. What was cut off before the @ counts too,
# where it is no port.
_OF_URL = re.compile(r"(?<=://)(?:[^\s'\"<>]*@|[^\s'\"<>/:@]+:(?!\d{1,5}\b)[^\s'\"<>]+)")
_OF_HOST = re.compile(r"(?<![^\s'\",=])[^\s'\",=:/@]+:[^\s'\",/@]+@(?=[\w.-]+:\d)")
_OF_QUERY = re.compile(
    r"([?&][\w.-]*(?:key|secret|token|password|signature|sig|credential)[\w.-]*=)[^\s&'\"<>]+",
    re.IGNORECASE,
)

_concealed: set[str] = set()


def conceal(secret: str) -> None:
    """Mask this secret in all lines from now on; its variable may have any name."""
    _concealed.add(secret)


def masked(text: str) -> str:
    """Return text without the credentials of the environment and those in URLs."""
    for secret in sorted({*_concealed, *_of_environment()}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = _OF_QUERY.sub(rf"\g<1>{MASK}", _OF_URL.sub(_user_masked, text))
    return _OF_HOST.sub(f"{MASK}@", text)


def _user_masked(found: re.Match[str]) -> str:
    return f"{MASK}@" if found[0].endswith("@") else MASK


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        upper = name.upper()
        if _NAMED.search(upper) and not _NOT_NAMED.search(upper):
            for secret in _secrets(upper, value):
                if len(secret) >= _CHARACTERS_MIN:
                    yield secret


def _secrets(name: str, value: str) -> Iterator[str]:
    yield value.strip()
    if _HEADERS.search(name):
        for header in value.split(","):
            told = header.partition("=")[2].strip()
            for each in (told, unquote(told)):
                yield each
                yield _SCHEME_OF_HEADER.sub("", each)
