"""What a policy binds a tenant, an API key or a class to; a request may only narrow it."""

from policies.config.schema import Declaration


class Bound(Declaration):
    """Places that all requests of a tenant, a key or a class are kept to; None leaves it open.

    ``data_classes`` are those that a request may be of; one that names none is of the first.
    """

    regions: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    pools: tuple[str, ...] | None = None
    data_classes: tuple[str, ...] | None = None


class APIKey(Declaration):
    """What a policy knows of an API key, by its id; the key itself is the gateway's."""

    tenant: str | None = None
    """The tenant that it is of; a request with it and of another tenant is rejected."""
    bound: Bound = Bound()


NOT_BOUND = Bound()
Rule = tuple[str, Bound]
"""A bound, and its place in the policy, such as ``tenants.acme``."""
