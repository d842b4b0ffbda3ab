"""`shunter policy shadow`: what a second policy would have done otherwise."""

from dataclasses import replace
from typing import Annotated

import orjson
import typer
from rich.table import Table

from shunter.audit.source import open_trail
from shunter.client.kafka import run
from shunter.commands.policy_apply import By, next_change, publish_change
from shunter.console import ArchiveUrl, AsJson, Bootstrap, Prefix, UserError, out, settings_from
from shunter.logs.policies import read_policy_log
from shunter.shadow_report import ShadowReport
from topics import Catalogue, Settings


def shadow(
    stop: Annotated[bool, typer.Option("--stop", help="End the shadow.")] = False,
    by: By = None,
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Report what the policy in the shadow would have done otherwise, class by class.

    From the evidence of decisions on requests, and of releases of what waited. Costs and chances
    are those that each policy expected in the same situation; the regret is what the live policy
    costs beyond the shadow.

    Example: shunter policy shadow
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    if stop:
        _stop(settings, by)
        return
    report = ShadowReport()
    open_trail(archive, settings).each("evidence", lambda row: report.add(row.value or b""))
    rows = list(report.rows())
    if as_json:
        typer.echo(orjson.dumps([row.as_dict() for row in rows]).decode())
        return
    if not rows:
        raise UserError(
            "no decision was made beside another; `shunter policy apply --shadow FILE` begins that"
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("shadow")
    table.add_column("of")
    table.add_column("class")
    headings = ("decisions", "differs", "live $", "shadow $", "regret $", "live %", "shadow %")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        figures = row.as_dict()
        table.add_row(
            *(row.shadow, row.of, row.task, f"{row.decisions:,}"),
            f"{row.differs / row.decisions:.1%}",
            *(f"{usd:.6f}" for usd in (row.live_usd, row.shadow_usd, row.regret_usd)),
            *(f"{100 * figures[f'{who}_attainment']:.2f}" for who in ("live", "shadow")),
        )
    out.print(table)


def _stop(settings: Settings, by: str | None) -> None:
    said = run(read_policy_log(settings))
    if said.current is None or said.current.shadow is None:
        raise UserError(f"no policy is in the shadow on {Catalogue(settings).policies}")
    change = replace(next_change(said, "shadow_stop", by), shadow=None)
    publish_change(settings, said, change, [])
    out.print(f"change {change.number}: policy {said.current.shadow} decides no more")
