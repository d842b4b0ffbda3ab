"""`shunter policy`: check the declarations, and explain a decision."""

import time
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table

from policies import (
    Decision,
    Tagged,
    UnservableError,
    compile_options,
    decide,
    decided_tags,
    idle_view,
    situation,
    tag,
)
from policies.situation import Situation
from shunter.console import AsJson, FleetFile, PolicyFile, UserError, out, settings_from
from streams.declarations import load_declarations, load_fleet, load_policy
from topics import BadRecordError, parse_request

policy = typer.Typer(name="policy", help="Check fleet and policy; explain a decision.")


@policy.command()
def check(fleet: FleetFile = None, policy: PolicyFile = None, as_json: AsJson = False) -> None:
    """Validate the fleet and the policy; each problem names file, field and value.

    Example: shunter policy check --fleet fleet.yaml --policy policy.yaml
    """
    settings = settings_from(fleet=fleet, policy=policy)
    checked_fleet, checked_policy = load_fleet(settings.fleet), load_policy(settings.policy)
    options = compile_options(checked_fleet)
    report = {
        "fleet_version": checked_fleet.version,
        "policy_version": checked_policy.version,
        "pools": len(checked_fleet.pools),
        "options": sum(map(len, options.by_pool.values())),
        "models_served": sorted(options.by_model),
        "classes": sorted(checked_policy.classes),
    }
    if as_json:
        typer.echo(orjson.dumps(report).decode())
        return
    for name, value in report.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        out.print(f"[bold]{name.replace('_', ' ')}[/]: {shown}", highlight=False)


@policy.command()
def explain(
    request: Annotated[Path, typer.Argument(help="A file with one request as JSON.")],
    fleet: FleetFile = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the whole decision on a request, with every pool alive and idle.

    Example: shunter policy explain request.json
    """
    settings = settings_from(fleet=fleet, policy=policy)
    options, checked_policy = load_declarations(settings)
    now = time.time()
    bare = situation(options, checked_policy)
    idle = Situation(options, checked_policy, idle_view(options, now), bare.arrivals)
    try:
        parsed = parse_request(request.read_bytes(), bytes_max=settings.request_bytes_max)
        tagged = tag(parsed, checked_policy, received_at=now, now=now, ingest_partition=0)
    except OSError as error:
        raise UserError(f"{request}: {error.strerror}") from error
    except (BadRecordError, UnservableError) as error:
        raise UserError(f"{request}: {error.message}") from error
    decision = decide(tagged.profile, idle, now)
    tags = tagged.tags | decided_tags(tagged.profile, decision, options, now)
    if as_json:
        shown = {
            "action": decision.action,
            "reason": decision.reason,
            "message": decision.message,
            "tags": tags,
            "candidates": decision.candidates,
            "promised": decision.promised,
            "group": decision.group,
            "refusals": decision.refusals,
            "policy_version": checked_policy.version,
            "fleet_version": options.version,
        }
        typer.echo(orjson.dumps(shown).decode())
        return
    _print(tagged, tags, decision)


def _print(tagged: Tagged, tags: dict[str, Any], decision: Decision) -> None:
    known = Table("tag", "value", "source", "sure", title=f"request {tagged.profile.id}")
    for name, found in tags.items():
        value = orjson.dumps(found.value).decode()
        known.add_row(name, value, found.source, f"{found.confidence:.2f}")
    out.print(known)
    table = Table("", "pool", "variant", "precision", "region", "path", title="candidates")
    for heading in ("cost $", "TTFT s", "finish s", "chance", "refused"):
        table.add_column(heading, justify="right")
    chosen = decision.action in {"place", "hold"} and decision.promised is not None
    for index, c in enumerate(decision.candidates):
        table.add_row(
            "→" if chosen and index == 0 else "",
            c.pool,
            c.model_variant,
            c.precision,
            c.region,
            c.path,
            _number(c.cost_usd, "{:.7f}"),
            _number(c.ttft_s, "{:.3f}"),
            _number(c.finish_s, "{:.2f}"),
            _number(c.chance, "{:.3f}"),
            c.refused or "",
        )
    out.print(table)
    out.print(f"[bold]{decision.action}[/]: {decision.reason}", highlight=False)
    if decision.message:
        out.print(decision.message, highlight=False)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
