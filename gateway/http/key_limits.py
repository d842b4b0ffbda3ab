"""Limits of each key at this gateway: requests, tokens, dollars, and how many at once."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.http.errors import ApiError
from gateway.http.keys import ApiKey
from topics import Result

MINUTE_S = 60.0
DAY_S = 86_400.0


@dataclass(slots=True)
class _Spent:
    """The use of a key in a window of time, by the window's number."""

    window: int = -1
    amount: float = 0.0


@dataclass(slots=True)
class _Use:
    requests: _Spent
    tokens: _Spent
    usd: _Spent
    open_now: int = 0


class KeyLimits:
    """Counts what each key uses, in windows of the clock; what runs on is charged when it ends."""

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}

    @contextlib.contextmanager
    def admitted(self, key: ApiKey | None, now: float) -> Iterator[None]:
        """Count a request while it is open.

        Raises:
            ApiError: the key has used up one of its limits (429).
        """
        if key is None:
            yield
            return
        use, most = self._use(key), key.limits
        for spent, limit, window_s, what in (
            (use.requests, most.requests_per_minute, MINUTE_S, "requests a minute"),
            (use.tokens, most.tokens_per_minute, MINUTE_S, "tokens a minute"),
            (use.usd, most.usd_per_day, DAY_S, "US dollars a day"),
        ):
            if limit is not None and _amount(spent, window_s, now) >= limit:
                raise _exceeded(f"{limit:g} {what}", window_s - now % window_s)
        if most.concurrency is not None and use.open_now >= most.concurrency:
            raise _exceeded(f"{most.concurrency} requests at once", 1.0)
        _add(use.requests, MINUTE_S, now, 1)
        use.open_now += 1
        try:
            yield
        finally:
            use.open_now -= 1

    def charge(self, key: ApiKey, result: Result, now: float) -> None:
        """Count tokens and cost of a result."""
        use = self._use(key)
        if result.usage is not None:
            tokens = result.usage.input_tokens + result.usage.output_tokens
            _add(use.tokens, MINUTE_S, now, tokens)
        if result.cost is not None:
            _add(use.usd, DAY_S, now, result.cost.usd)

    def _use(self, key: ApiKey) -> _Use:
        if key.sha256 not in self._uses:
            self._uses[key.sha256] = _Use(_Spent(), _Spent(), _Spent())
        return self._uses[key.sha256]


def _amount(spent: _Spent, window_s: float, now: float) -> float:
    return spent.amount if spent.window == int(now // window_s) else 0.0


def _add(spent: _Spent, window_s: float, now: float, amount: float) -> None:
    spent.amount = _amount(spent, window_s, now) + amount
    spent.window = int(now // window_s)


def _exceeded(what: str, wait_s: float) -> ApiError:
    message = f"this key may use {what} at this gateway, and has; try again later"
    return ApiError(429, "rate_limit_exceeded", message, retry_after_s=wait_s)
