"""The claim: which request a client's ``Idempotency-Key`` stands for, so that all gateways know."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyClaim:
    """One record of a key, keyed by the id of its first request; the first of a run counts.

    ``run`` counts its requests from 0: one that ended so that another try may do better is run
    anew. ``digest`` is that of what was asked for, ``token`` names whoever made the claim, ``at``
    is epoch seconds. A later record of the same run says that somebody has joined it.
    """

    run: int
    digest: str
    token: str
    at: float
