"""`shunter policy`: check the declarations, and explain a decision."""

import time
from dataclasses import asdict, replace
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
    decided_tags,
    review,
    tag,
)
from policies.fleet_state.view import idle_reports
from policies.scoring.reasons import reasons
from policies.scoring.situation import Situation
from shunter.client.kafka import run
from shunter.command_tree import CommandTree
from shunter.commands.policy_apply import apply, history, rollback
from shunter.commands.policy_backtest import backtest
from shunter.commands.policy_shadow import shadow
from shunter.console import (
    AsJson,
    Bootstrap,
    FleetFile,
    PolicyFile,
    Prefix,
    UserError,
    named,
    out,
    read_input,
    settings_from,
    wide_out,
)
from shunter.logs.budgets import read_books
from shunter.logs.heartbeats import read_heartbeats
from shunter.logs.policies import declarations_in_force
from shunter.logs.quality import read_known
from shunter.render.story import story
from shunter.what_if import Pools, WhatIf, fallbacks, limits, situation_of
from streams.config.declarations import Declarations, load_fleet, load_policy
from streams.config.token_counting import load_token_counter
from streams.router.keys import check_key
from topics import (
    BadRecordError,
    Evidence,
    InferenceRequest,
    Placement,
    Profile,
    Settings,
    Source,
    parse_request,
)
from topics.records.evidence import Step
from topics.terminal_text import visible_line

_STEPS: dict[str, Step] = {
    "place": "placed",
    "hold": "held",
    "reject": "rejected",
    "expire": "expired",
}

policy = CommandTree(
    add_completion=False, name="policy", help="Check, explain, backtest and apply fleet and policy."
)
policy.command()(backtest)
policy.command()(apply)
policy.command()(rollback)
policy.command()(history)
policy.command()(shadow)


@policy.command()
def check(fleet: FleetFile = None, policy: PolicyFile = None, as_json: AsJson = False) -> None:
    """Validate the fleet and the policy; each problem names file, field and value.

    Warnings tell of what is valid and can't work: a model that no pool serves, a class that no pool
    serves within its SLO or deadline, data that may stay nowhere, bounds that leave no pool, a
    region without a second pool for a model.

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
    request: Annotated[
        Path, typer.Argument(help="A file with one request as JSON; - is standard input.")
    ],
    fleet: FleetFile = None,
    policy: PolicyFile = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="POOL", help="As if this pool were unavailable."),
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="With what is in force, and the pools as they are at present."),
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(metavar="ID", help="As if a gateway had proven the API key of this id."),
    ] = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Show the whole decision on a request, and what else may become of it.

    Every pool counts as alive and idle, and every budget as unused, unless --live, which asks Kafka
    and changes nothing there. What else may happen: where the request goes as pools become
    unavailable, and what may reject or end it. Which pools have served its session, and how many
    requests of its kind come at present, are known to routers alone.

    Example: shunter policy explain request.json --without premium-us
    """
    settings = settings_from(
        bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, fleet=fleet, policy=policy
    )
    declared = Declarations(load_fleet(settings.fleet), load_policy(settings.policy))
    if live:
        declared = run(declarations_in_force(settings, declared))
    checked_policy = declared.policy
    options, now = compile_options(declared.fleet), time.time()
    pools = run(_pools(settings, now)) if live else Pools(idle_reports(options, now), {})
    gone = _known_pools(options, without or [])
    here = situation_of(options, checked_policy, pools, gone)
    parsed = _parsed(request, settings.request_bytes_max)
    try:
        tagged = _tagged(parsed, declared, key, now)
    except UnservableError as error:
        _tell_refusal(_refusal(parsed, error, here, named(request), now), as_json=as_json)
        return
    first, *others = fallbacks(tagged.profile, options, checked_policy, pools, gone, now)
    decision = first.decision
    evidence = _evidence(tagged, decision, here, named(request), now)
    counted = checked_policy.budgets_for(tagged.profile) if live else []
    books = run(read_books(settings, tagged.profile.tenant)) if counted else None
    also = limits(tagged.profile, checked_policy, books, now)
    if as_json:
        shown = _as_json(decision, evidence, tagged) | {
            "assumed_pools": _assumed(options),
            "otherwise": [_otherwise(each) for each in others],
            "limits": also,
            "budgets": [books.current(each, now) for each in counted if books is not None],
        }
        typer.echo(orjson.dumps(shown).decode())
        return
    wide_out().print(story([evidence]))
    wide_out().print("what else may become of it:")
    for line in [*map(_in_words, others), *also]:
        wide_out().print(f"  {visible_line(line)}", highlight=False, soft_wrap=True)
    if assumed := _assumed(options):
        told = ", ".join(assumed)
        wide_out().print(f"assumed, since no servers on such devices were measured: {told}")


async def _pools(settings: Settings, now: float) -> Pools:
    return Pools(await read_heartbeats(settings, now), (await read_known(settings)).drifted())


def _as_json(decision: Decision, evidence: Evidence, tagged: Tagged) -> dict[str, Any]:
    return {
        "action": decision.action,
        "reason": decision.reason,
        "message": decision.message,
        "bound_by": tagged.profile.bound_by,
        "tags": evidence.tags,
        "candidates": [
            asdict(each) | {"reason": reason}
            for each, reason in zip(evidence.candidates, reasons(evidence), strict=True)
        ],
        "promised": decision.promised,
        "group": decision.group,
        "refusals": decision.refusals,
        "policy_version": evidence.policy_version,
        "fleet_version": evidence.fleet_version,
    }


def _parsed(request: Path, bytes_max: int) -> InferenceRequest:
    try:
        return parse_request(read_input(request), bytes_max=bytes_max)
    except OSError as error:
        raise UserError(f"{named(request)}: {error.strerror}") from error
    except BadRecordError as error:
        raise UserError(f"{named(request)}: {error.message}") from error


def _tagged(
    request: InferenceRequest, declared: Declarations, key: str | None, now: float
) -> Tagged:
    """Return a request as a router would tag it.

    Raises:
        UnservableError: as a router would reject it.
    """
    check_key(key, request.tenant, declared.policy)
    return tag(
        request,
        declared.policy,
        received_at=now,
        now=now,
        ingest_partition=0,
        count=load_token_counter(declared.fleet).of(request),
        serving=compile_options(declared.fleet).serving.get(request.model),
        key=key,
    )


def _refusal(
    request: InferenceRequest, error: UnservableError, here: Situation, file: str, now: float
) -> Evidence:
    """Return the evidence of a request that no router would decide on."""
    rejected = _step_of(request, "rejected", here, file, now)
    return replace(rejected, reason=error.code, message=error.message)


def _step_of(
    subject: InferenceRequest | Profile, step: Step, here: Situation, file: str, now: float
) -> Evidence:
    """Return what the evidence of each step of a request has."""
    return Evidence(
        request_id=subject.id,
        step=step,
        at=now,
        writer="policy explain",
        source=Source(file, 0, 0),
        tenant=subject.tenant,
        task=subject.task,
        model=subject.model,
        policy_version=here.policy.version,
        fleet_version=here.options.version,
    )


def _tell_refusal(refused: Evidence, *, as_json: bool) -> None:
    if not as_json:
        wide_out().print(story([refused]))
        return
    shown: dict[str, Any] = {
        "action": "reject",
        "reason": refused.reason,
        "message": refused.message,
        "candidates": [],
        "policy_version": refused.policy_version,
        "fleet_version": refused.fleet_version,
    }
    typer.echo(orjson.dumps(shown).decode())


def _known_pools(options: Options, named_pools: list[str]) -> list[str]:
    for name in named_pools:
        if name not in options.by_pool:
            raise UserError(f"--without {name!r}: the fleet has {', '.join(options.by_pool)}")
    return named_pools


def _otherwise(found: WhatIf) -> dict[str, Any]:
    decision = found.decision
    is_served = decision.promised is not None
    return {
        "without": found.without,
        "action": decision.action,
        "reason": decision.reason,
        "pool": decision.candidates[0].pool if is_served else None,
        "model_variant": decision.candidates[0].model_variant if is_served else None,
        "promised": decision.promised,
    }


def _in_words(found: WhatIf) -> str:
    """Return one line for people."""
    decision, promised = found.decision, found.decision.promised
    gone = ", ".join(found.without)
    if promised is None:
        held = "held until a pool that may serve it is alive"
        return f"without {gone}: {held if decision.action == 'hold' else decision.message}"
    best = decision.candidates[0]
    done = "held for a batch at" if decision.action == "hold" else "placed at"
    return (
        f"without {gone}: {done} {best.pool} ({best.model_variant}), {decision.reason},"
        f" ${promised.cost_usd:.7f}, chance {promised.chance or 0.0:.0%}"
    )


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
    return replace(
        _step_of(profile, _STEPS[decision.action], situation, file, now),
        profile=profile,
        tags=tagged.tags | decided_tags(profile, decision, situation.options, now),
        candidates=tuple(decision.candidates),
        placement=placement,
        promised=decision.promised,
        reason=decision.reason,
        message=decision.message,
    )
