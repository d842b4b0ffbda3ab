"""The table of rights in docs/operations.md, as the rights themselves have it."""

from collections.abc import Iterator

from topics import Catalogue, Settings
from topics.admin.acls import roles

KINDS = {"Topic": "topics", "Group": "groups", "TransactionalId": "transactional ids"}


def rows() -> Iterator[str]:
    """One row per role, operation and kind of resource; ``*`` ends the name of a prefix."""
    for role in roles(Catalogue(Settings(topic_prefix="inference")), ["<pool>"]):
        named: dict[tuple[str, str], list[str]] = {}
        for grant in role.grants:
            name = f"`{grant.name}{'*' if grant.pattern == 'Prefixed' else ''}`"
            named.setdefault((grant.operation, KINDS[grant.resource]), []).append(name)
        for (operation, kind), names in named.items():
            yield f"| {role.name} | {operation} | {kind} | {', '.join(names)} |"
