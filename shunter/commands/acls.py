"""`shunter topics acls`: the least rights of each role."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table

from shunter.console import AsJson, Bootstrap, FleetFile, Prefix, UserError, out, settings_from
from streams.config.declarations import load_fleet
from topics import Catalogue
from topics.admin.acls import Role, RoleName, kafka_acls, roles


def acls(
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    fleet: FleetFile = None,
    role: Annotated[
        RoleName | None, typer.Option("--role", help="This role only.", show_default=False)
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option("--pool", help="Workers of this pool only; may be repeated."),
    ] = None,
    principal: Annotated[
        str | None,
        typer.Option(
            "--principal", metavar="User:NAME", help="Who gets the rights of the one role shown."
        ),
    ] = None,
    commands: Annotated[
        bool, typer.Option("--commands", help="Print kafka-acls.sh lines that give the rights.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the least rights of each role: client, router, worker of a pool, auditor, operator.

    Asks no Kafka. Who has these rights and no other can do all that the role does, and nothing
    else. In the table a name that ends in * is a prefix. A router reaches each pool of the fleet
    file.

    Example: shunter topics acls --role worker --pool silicon-us --commands
    """
    settings = settings_from(
        bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, fleet=fleet
    )
    known = list(load_fleet(settings.fleet).pools)
    shown = _chosen(roles(Catalogue(settings), known), known, role, pool)
    if principal is not None and len(shown) != 1:
        raise UserError(
            f"--principal is for one role, and {len(shown)} are shown:"
            " choose with --role, and --pool for a worker"
        )
    named = [(principal or each.principal, each) for each in shown]
    if as_json:
        typer.echo(orjson.dumps([_plain(who, each) for who, each in named]).decode())
    elif commands:
        for who, each in named:
            typer.echo(f"# {each.label}")
            for line in kafka_acls(each, who, settings.bootstrap_servers):
                typer.echo(line)
    else:
        for who, each in named:
            out.print(_table(who, each))


def _chosen(
    every: Sequence[Role], known: Sequence[str], role: RoleName | None, pools: list[str] | None
) -> list[Role]:
    for name in pools or ():
        if name not in known:
            raise UserError(f"--pool: the fleet has no pool {name!r}; it has {', '.join(known)}")
    if pools and role not in {None, "worker"}:
        raise UserError(f"--pool is for workers, not for --role {role}")
    wanted = "worker" if pools else role
    return [
        each for each in every if wanted in {None, each.name} and (not pools or each.pool in pools)
    ]


def _plain(principal: str, role: Role) -> dict[str, Any]:
    return {
        "role": role.name,
        "pool": role.pool,
        "principal": principal,
        "grants": [asdict(grant) for grant in role.grants],
    }


def _table(principal: str, role: Role) -> Table:
    table = Table(
        title=f"{role.label} ({principal})",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    for heading in ("operation", "resource", "name", "for"):
        table.add_column(heading, overflow="fold")
    for grant in role.grants:
        star = "*" if grant.pattern == "Prefixed" else ""
        table.add_row(grant.operation, grant.resource, f"{grant.name}{star}", grant.why)
    return table
