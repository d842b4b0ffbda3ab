"""Ids of requests that come through the gateway; each tells its tenant, and most when."""

import hashlib
import re
import secrets

PREFIX = "req_"
TAG_CHARACTERS = 16
_TIME_CHARACTERS = 11
_KEYED = "k"
_TIMED = re.compile(r"[0-9a-f]{29}")


def tenant_tag(tenant: str) -> str:
    """Return what the ids of a tenant begin with, after ``req_``: 16 hex digits."""
    return hashlib.sha256(b"tenant\0" + tenant.encode()).hexdigest()[:TAG_CHARACTERS]


def new_id(tenant: str, now: float) -> str:
    """Return a new id of a tenant's request; ``now`` is epoch seconds."""
    return f"{PREFIX}{tenant_tag(tenant)}{int(now * 1000):011x}{secrets.token_hex(9)}"


def owned_id(tenant: str, rest: str) -> str:
    """Return the id of a tenant's request that the caller numbers, such as a line of a batch.

    Args:
        tenant: whose it is.
        rest: up to 100 characters, unique for the tenant; not hexadecimal throughout, so that it
            is no time.
    """
    return f"{PREFIX}{tenant_tag(tenant)}{rest}"


def keyed_id(tenant: str, path: str, key: str, run: int = 0) -> str:
    """Return the id of the ``run``-th request of a tenant's ``Idempotency-Key`` for a path."""
    parts = [part.encode() for part in (tenant, path, key)]
    # Lengths first, so that no two triples are the same bytes.
    text = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    again = f"-{run}" if run else ""
    return owned_id(tenant, f"{_KEYED}{hashlib.sha256(text).hexdigest()[:40]}{again}")


def belongs_to(request_id: str, tenant: str) -> bool:
    """Return whether an id is one of a tenant's requests."""
    return request_id.startswith(PREFIX + tenant_tag(tenant))


def made_at(request_id: str) -> float | None:
    """Return when an id of ``new_id`` was made, epoch seconds; None for another one."""
    rest = request_id[len(PREFIX) + TAG_CHARACTERS :]
    if _TIMED.fullmatch(rest) is None:
        return None
    return int(rest[:_TIME_CHARACTERS], 16) / 1000
