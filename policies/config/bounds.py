"""Bounds that a policy sets a tenant, an API key or a class; a request may only narrow them."""

from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, model_validator

from policies.config.budgets import Budget, check_windows
from policies.config.schema import Declaration
from policies.config.serving import ExtendedDeclaration

Budgets = Annotated[tuple[Budget, ...], AfterValidator(check_windows)]


class Bound(Declaration):
    """Places that all requests of a tenant, a key or a class are kept to; None leaves it open.

    ``data_classes`` are those that a request may be of; one that names none is of the first.
    """

    regions: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    pools: tuple[str, ...] | None = None
    data_classes: tuple[str, ...] | None = None


class APIKey(ExtendedDeclaration):
    """An API key as a policy knows it, by its id; the key itself is the gateway's."""

    added: ClassVar[frozenset[str]] = frozenset({"budgets"})

    tenant: str | None = None
    """The tenant that it is of; a request with it and of another tenant is rejected."""
    bound: Bound = Bound()
    budgets: Budgets = ()
    """What requests with the key may use, beside the budgets of its tenant."""

    @model_validator(mode="after")
    def _budgets_have_a_tenant(self) -> Self:
        # One process keeps all accounts of a tenant, those of its keys among them.
        if self.budgets and self.tenant is None:
            raise ValueError("a key with budgets must name its tenant")
        return self


NOT_BOUND = Bound()
Rule = tuple[str, Bound]
"""A bound, and its place in the policy, such as ``tenants.acme``."""
