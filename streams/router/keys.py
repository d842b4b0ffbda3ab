"""API keys: which one a request proves, and whether its tenant lets it in."""

from policies import Policy, UnservableError
from streams.engine.log import Record
from topics import InferenceRequest
from topics.records.key_proof import proven_key


class ProvenKeys:
    """Checks the proofs of gateways. Without their secret no key is ever proven."""

    def __init__(self, secret: str | None) -> None:
        self._secret = None if secret is None else secret.encode()

    def of(self, record: Record, request: InferenceRequest, policy: Policy) -> str | None:
        """Return the id of the key that a request came with, or None.

        Raises:
            UnservableError: its tenant needs a key, or the key is another tenant's.
        """
        found = None
        if self._secret is not None:
            found = proven_key(record.headers, self._secret, request.id, request.tenant)
        check_key(found, request.tenant, policy)
        return found


def check_key(key: str | None, tenant: str, policy: Policy) -> None:
    """Check that a tenant lets in a request that came with a key, or with None.

    Raises:
        UnservableError: the tenant needs a key, or the key is another tenant's.
    """
    known = None if key is None else policy.keys.get(key)
    if known is not None and known.tenant not in {None, tenant}:
        raise UnservableError(
            "key_of_another_tenant",
            f"the key {key!r} is of tenant {known.tenant!r}, not of {tenant!r}",
        )
    if key is None and policy.limits_of(tenant).needs_key:
        raise UnservableError(
            "key_required",
            f"tenant {tenant!r} takes requests with a proven key alone: send this one"
            " through a gateway that shares SHUNTER_KEY_SECRET with the routers",
        )
