"""`shunter policy apply`, `rollback` and `history`: what is in force, without a restart."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.table import Table

from policies import Fleet, Policy, compile_options, review
from shunter.client.kafka import note, run
from shunter.console import AsJson, Bootstrap, Prefix, UserError, out, settings_from
from shunter.logs.policies import publish_entries, read_policy_log, who
from streams.config.declarations import (
    load_fleet,
    load_policy,
    published_fleet,
    published_policy,
    text_of,
)
from topics import Catalogue, Declared, PolicyChange, PolicyEntry, PolicyLog, Settings, encode
from topics.admin import provisioning as administration
from topics.admin.topic_report import PARTITIONS, CatalogueReport
from topics.iso_time import iso_time
from topics.records.policy_change import ChangeAction, DeclaredKind

By = Annotated[
    str | None, typer.Option("--by", help="Who does this, for the history; user@host if unset.")
]


def apply(
    policy: Annotated[Path | None, typer.Option("--policy", help="Policy YAML.")] = None,
    fleet: Annotated[Path | None, typer.Option("--fleet", help="Fleet YAML.")] = None,
    shadow: Annotated[
        Path | None,
        typer.Option("--shadow", help="Policy YAML that decides beside the live one, for show."),
    ] = None,
    by: By = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Put a policy or a fleet in force in all routers and workers, without a restart.

    Checked first as by `shunter policy check`, and refused with file, field and value. What is not
    given stays as it is. Creates the topics of new pools. Wins over the files that processes were
    started with. A shadow is put on record and never acted upon.

    Example: shunter policy apply --policy policy.yaml
    """
    if policy is None and fleet is None and shadow is None:
        raise UserError("nothing to apply: name a file with --policy, --fleet or --shadow")
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    new_policy = None if policy is None else load_policy(policy)
    new_fleet = None if fleet is None else load_fleet(fleet)
    new_shadow = None if shadow is None else load_policy(shadow)
    said = run(read_policy_log(settings))
    change = next_change(said, "apply" if policy or fleet else "shadow", by)
    if new_policy is not None:
        change = replace(change, policy=new_policy.version)
    if new_fleet is not None:
        change = replace(change, fleet=new_fleet.version)
    if new_shadow is not None:
        change = replace(change, shadow=new_shadow.version)
    change = _without_own_shadow(change)
    _warn(settings, said, change, new_fleet, new_policy or new_shadow)
    if new_fleet is not None:
        _provide_topics(settings, new_fleet)
    publish_change(
        settings, said, change, [d for d in (new_policy, new_fleet, new_shadow) if d is not None]
    )
    _tell(said, change, settings, as_json=as_json)


def rollback(
    version: Annotated[
        str | None,
        typer.Argument(metavar="VERSION", help="Of a policy; what was before, if not given."),
    ] = None,
    by: By = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Put back in force what was before: policy and fleet as they stood together.

    Without VERSION that is what was in force before the present; a second time takes it back.

    Example: shunter policy rollback
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    said = run(read_policy_log(settings))
    if said.current is None:
        raise UserError(f"nothing was ever applied on {Catalogue(settings).policies}")
    if version is None:
        back = said.previous
    else:
        back = next((c for c in reversed(said.changes) if c.policy == version), None)
        if back is None:
            raise UserError(
                f"no policy {version!r} was ever in force; `shunter policy history` lists them"
            )
    # Before the first change each router had its start declarations.
    policy, fleet = (None, None) if back is None else (back.policy, back.fleet)
    rolled = replace(next_change(said, "rollback", by), policy=policy, fleet=fleet)
    change = _without_own_shadow(rolled)
    # No router of this version takes a text that this version can't read.
    if change.policy is not None:
        published_policy(said, change.policy)
    if change.fleet is not None:
        _provide_topics(settings, published_fleet(said, change.fleet))
    publish_change(settings, said, change, [])
    _tell(said, change, settings, as_json=as_json)


def history(
    bootstrap_servers: Bootstrap = None, topic_prefix: Prefix = None, as_json: AsJson = False
) -> None:
    """List every change of what is in force, the newest last: versions, when, by whom.

    Example: shunter policy history
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    said = run(read_policy_log(settings))
    if as_json:
        typer.echo(orjson.dumps(said.changes).decode())
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("change", "at", "action", "policy", "fleet", "shadow", "by"):
        table.add_column(heading, overflow="fold")
    for change in said.changes:
        at = iso_time(change.at)
        table.add_row(
            *(str(change.number), at, change.action),
            *(change.policy or "own file", change.fleet or "own file", change.shadow or ""),
            change.by,
        )
    out.print(table)


def next_change(said: PolicyLog, action: ChangeAction, by: str | None) -> PolicyChange:
    """Return a change that keeps what is in force."""
    current = said.current or PolicyChange(0, "apply", 0.0, "")
    return replace(
        current, number=current.number + 1, action=action, at=time.time(), by=by or who()
    )


def _without_own_shadow(change: PolicyChange) -> PolicyChange:
    """Return a change without a shadow that is the live policy itself."""
    return replace(change, shadow=None) if change.shadow == change.policy else change


def _warn(
    settings: Settings,
    said: PolicyLog,
    change: PolicyChange,
    fleet: Fleet | None,
    policy: Policy | None,
) -> None:
    """Tell what is valid and can't work, of the two as they will be in force together."""
    if fleet is None:
        known = change.fleet
        fleet = load_fleet(settings.fleet) if known is None else published_fleet(said, known)
    if policy is None:
        known = change.policy
        policy = load_policy(settings.policy) if known is None else published_policy(said, known)
    for warning in review(fleet, compile_options(fleet), policy):
        note(f"warning: {warning}")


def _provide_topics(settings: Settings, fleet: Fleet) -> None:
    """Create what topics are missing, so that no router meets a pool without them.

    Raises:
        UserError: one has other partitions, or can't be created by this user.
    """
    report = run(_report(settings, fleet))
    if report is None:
        return
    for name in report.names("created"):
        note(f"created {name}")
    wrong = [t.name for t in report.topics if any(d.setting == PARTITIONS for d in t.differences)]
    if wrong:
        raise UserError(
            f"{', '.join(wrong)}: not the partitions that SHUNTER_PARTITIONS={settings.partitions}"
            " wants; set it to the number found"
        )


async def _report(settings: Settings, fleet: Fleet) -> CatalogueReport | None:
    """Return how the topics stand once all are there, None where nothing was missing."""
    catalogue = Catalogue(settings)
    wanted = [topic for pool in fleet.pools for topic in catalogue.pool_topics(pool)]
    if await administration.has_topics(settings, {t.name: t.partitions for t in wanted}):
        return None
    return await administration.apply(settings, fleet.pools)


def publish_change(
    settings: Settings, said: PolicyLog, change: PolicyChange, new: list[Fleet | Policy]
) -> None:
    """Publish a change, after those declarations that it names first; none if it changes nothing.

    Raises:
        UserError: Kafka can't be reached, or refuses; or somebody else published a change that did
            not know of this one, nor this of that.
    """
    before = said.current
    if before is not None and _active_policy(before) == _active_policy(change):
        return
    entries, known = [], set[str]()
    for declaration in new:
        kind: DeclaredKind = "fleet" if isinstance(declaration, Fleet) else "policy"
        version = declaration.version
        if said.find(kind, version) is None and version not in known:
            known.add(version)
            text = text_of(declaration)
            declared = Declared(kind, version, text, change.at, change.by)
            entries.append(PolicyEntry(declared=declared))
    run(publish_entries(settings, [*entries, PolicyEntry(change=change)]))
    _check_alone(run(read_policy_log(settings)), change, Catalogue(settings).policies)


def _check_alone(said: PolicyLog, change: PolicyChange, topic: str) -> None:
    """Each change says all that is in force, so of two made on the same the later undoes the other.

    Raises:
        UserError: there is another of this number.
    """
    alike = [each for each in said.changes if each.number == change.number]
    others = [each for each in alike if _active_policy(each) != _active_policy(change)]
    if not others:
        return
    other, number = others[-1], change.number
    what = (
        f"is in force, and undid change {number} by {other.by}, which was published just before it"
        if alike.index(change) > alike.index(other)
        else f"is not in force: change {number} by {other.by} was published just after it"
    )
    raise UserError(
        f"change {number} on {topic} {what}, neither knowing of the other; look at"
        " `shunter policy history`, and apply again what should stand"
    )


def _active_policy(change: PolicyChange) -> tuple[str | None, ...]:
    return (change.policy, change.fleet, change.shadow)


def _tell(said: PolicyLog, change: PolicyChange, settings: Settings, *, as_json: bool) -> None:
    before = said.current
    is_new = before is None or _active_policy(before) != _active_policy(change)
    if as_json:
        typer.echo(encode(change if is_new or before is None else before).decode())
        return
    own = "that of each router's file"
    policy, fleet = change.policy or own, change.fleet or own
    if not is_new:
        out.print(f"policy {policy}, fleet {fleet}: in force already", highlight=False)
        return
    topic = Catalogue(settings).policies
    beside = f", policy {change.shadow} in its shadow" if change.shadow else ""
    told = f"change {change.number} on {topic}: policy {policy}, fleet {fleet}{beside}"
    out.print(told, highlight=False, soft_wrap=True)
