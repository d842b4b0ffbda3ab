"""Lists by pages, as OpenAI's API has them."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aiohttp import web

from gateway.http.errors import ApiError

Told = dict[str, Any]
# Objects that are asked for at once.
GROUP = 100


def page(
    request: web.Request,
    ids: list[str],
    told: Callable[[list[str]], dict[str, Told]],
    *,
    limit_max: int,
    limit: int,
    is_ascending: bool,
) -> Told:
    """Return a page of a list by the query's ``limit`` and ``after``.

    Args:
        request: whose query it is.
        ids: all there are, the oldest first.
        told: objects by their ids, at most a hundred; without those that aren't to be shown.
        limit_max: the longest page.
        limit: where the query gives none.
        is_ascending: whether the oldest come first.

    Raises:
        ApiError: the query can't be used (400).
    """
    wanted = _limit(request, limit_max, limit)
    after = request.query.get("after")
    found: list[Told] = []
    has_more = False
    rest = iter(_rest(ids if is_ascending else ids[::-1], after, is_ascending=is_ascending))
    for one in _shown(rest, told, min(wanted + 1, GROUP)):
        if len(found) == wanted:
            has_more = True
            break
        found.append(one)
    return {
        "object": "list",
        "data": found,
        "first_id": found[0]["id"] if found else None,
        "last_id": found[-1]["id"] if found else None,
        "has_more": has_more,
    }


def _rest(ids: list[str], after: str | None, *, is_ascending: bool) -> Iterable[str]:
    # Ids sort by time, so that a page can follow one that was deleted meanwhile.
    if after is None:
        return ids
    return (each for each in ids if (each > after) == is_ascending and each != after)


def _shown(
    rest: Iterator[str], told: Callable[[list[str]], dict[str, Told]], group: int
) -> Iterator[Told]:
    while ids := list(itertools.islice(rest, group)):
        shown = told(ids)
        yield from (shown[each] for each in ids if each in shown)


def _limit(request: web.Request, limit_max: int, limit: int) -> int:
    text = request.query.get("limit")
    if text is None:
        return limit
    is_number = text.isascii() and text.isdigit() and len(text) < 9
    if not is_number or not 1 <= int(text) <= limit_max:
        message = f"limit must be a whole number from 1 to {limit_max:,}"
        raise ApiError(400, "invalid_value", message, param="limit")
    return int(text)


def check_query(request: web.Request, *known: str) -> None:
    """Refuse an unknown parameter of a query.

    Raises:
        ApiError: there is one (400).
    """
    for name in request.query:
        if name not in known:
            message = f"{name:.60} is not a parameter here; known are {', '.join(known)}"
            raise ApiError(400, "unknown_parameter", message, param=name[:60])
