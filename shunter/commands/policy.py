"""`shunter policy`: check the declarations, and explain a decision."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.text import Text

from policies import (
    Decision,
    Options,
    Tagged,
    UnservableError,
    compile_options,
    decide,
    decided_tags,
    idle_view,
    inputs_of,
    review,
    situation,
    tag,
)
from policies.scoring.reasons import reasons
from policies.scoring.situation import Situation
from shunter.commands.policy_apply import apply, history, rollback
from shunter.commands.policy_backtest import backtest
from shunter.commands.policy_shadow import shadow
from shunter.console import (
    AsJson,
    FleetFile,
    PolicyFile,
    UserError,
    out,
    settings_from,
    wide_out,
)
from shunter.render.story import story
from streams.config.declarations import load_fleet, load_policy
from streams.config.token_counting import load_token_counter
from topics import BadRecordError, Evidence, Placement, Source, parse_request
from topics.records.evidence import Step

_STEPS: dict[str, Step] = {
    "place": "placed",
    "hold": "held",
    "reject": "rejected",
    "expire": "expired",
}

policy = typer.Typer(name="policy", help="Check, explain, backtest and apply fleet and policy.")
policy.command()(backtest)
policy.command()(apply)
policy.command()(rollback)
policy.command()(history)
policy.command()(shadow)


@policy.command()
def check(fleet: FleetFile = None, policy: PolicyFile = None, as_json: AsJson = False) -> None:
    """Validate the fleet and the policy; each problem names file, field and value.

    Warnings tell of what is valid and can't work: a model that no pool serves, a class that no pool
    serves within its SLO or deadline, data that may stay nowhere, a region without a second pool
    for a model.

    Example: shunter policy check --fleet fleet.yaml --policy policy.yaml
    """
    settings = settings_from(fleet=fleet, policy=policy)
    checked_fleet, checked_policy = load_fleet(settings.fleet), load_policy(settings.policy)
    options = compile_options(checked_fleet)
    report: dict[str, Any] = {
        "fleet_version": checked_fleet.version,
        "policy_version": checked_policy.version,
        "pools": len(checked_fleet.pools),
        "options": sum(map(len, options.by_pool.values())),
        "models_served": sorted(options.by_model),
        "classes": sorted(checked_policy.classes),
        "warnings": review(checked_fleet, options, checked_policy),
    }
    if as_json:
        typer.echo(orjson.dumps(report).decode())
        return
    for warning in report.pop("warnings"):
        told = Text.assemble(("warning:", "yellow"), f" {warning}")
        out.print(told, soft_wrap=True)
    for name, value in report.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        out.print(Text.assemble((name.replace("_", " "), "bold"), f": {shown}"))


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
    fleet_read = load_fleet(settings.fleet)
    options, checked_policy = compile_options(fleet_read), load_policy(settings.policy)
    now = time.time()
    bare = situation(options, checked_policy)
    idle = Situation(options, checked_policy, idle_view(options, now), bare.arrivals)
    try:
        parsed = parse_request(request.read_bytes(), bytes_max=settings.request_bytes_max)
        tagged = tag(
            parsed,
            checked_policy,
            received_at=now,
            now=now,
            ingest_partition=0,
            count=load_token_counter(fleet_read).of(parsed),
            serving=options.by_model.get(parsed.model, ()),
        )
    except OSError as error:
        raise UserError(f"{request}: {error.strerror}") from error
    except (BadRecordError, UnservableError) as error:
        raise UserError(f"{request}: {error.message}") from error
    inputs = inputs_of(tagged.profile, idle, now)
    decision = decide(tagged.profile, inputs, options, checked_policy, now)
    evidence = _evidence(tagged, decision, idle, str(request), now)
    if as_json:
        shown = {
            "action": decision.action,
            "reason": decision.reason,
            "message": decision.message,
            "tags": evidence.tags,
            "candidates": [
                asdict(candidate) | {"reason": reason}
                for candidate, reason in zip(evidence.candidates, reasons(evidence), strict=True)
            ],
            "promised": decision.promised,
            "group": decision.group,
            "refusals": decision.refusals,
            "policy_version": evidence.policy_version,
            "fleet_version": evidence.fleet_version,
            "assumed_pools": _assumed(options),
        }
        typer.echo(orjson.dumps(shown).decode())
        return
    wide_out().print(story([evidence]))
    if assumed := _assumed(options):
        told = ", ".join(assumed)
        wide_out().print(f"assumed, since no servers on such devices were measured: {told}")


def _assumed(options: Options) -> list[str]:
    """Return the pools whose latencies and costs rest on inherited constants."""
    return [name for name, served in options.by_pool.items() if served[0].is_assumed]


def _evidence(
    tagged: Tagged, decision: Decision, situation: Situation, file: str, now: float
) -> Evidence:
    """Return the evidence that a router would write of this decision."""
    profile, option = tagged.profile, decision.option
    placement = None
    if option is not None:
        placement = Placement(
            option.pool, option.device, option.variant, option.precision, option.region, "direct"
        )
    return Evidence(
        request_id=profile.id,
        step=_STEPS[decision.action],
        at=now,
        writer="policy explain",
        source=Source(file, 0, 0),
        tenant=profile.tenant,
        task=profile.task,
        model=profile.model,
        policy_version=situation.policy.version,
        fleet_version=situation.options.version,
        profile=profile,
        tags=tagged.tags | decided_tags(profile, decision, situation.options, now),
        candidates=tuple(decision.candidates),
        placement=placement,
        promised=decision.promised,
        reason=decision.reason,
        message=decision.message,
    )
