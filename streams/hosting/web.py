"""Requests and responses of the pages on a process's web server."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class WebRequest:
    """A request to the web server: the query of its address, and its headers."""

    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. ``headers`` are added to the content's type."""

    content_type: str
    content: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


View = Callable[[WebRequest], Awaitable[Answer]]
