"""The claim: which request a client's ``Idempotency-Key`` stands for, so that all gateways know."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyClaim:
    """One record of a key, keyed by its digest in an id's form; the first of a run counts.

    ``run`` numbers its requests, from the hour of the first one's claim on: one that ended so that
    another try may do better is run anew, under the next number. ``digest`` is that of what was
    asked for, ``token`` names whoever made the claim, ``at`` is epoch seconds. A later record of
    the same run says that somebody has joined it.
    """

    run: int
    digest: str
    token: str
    at: float
