"""`shunter quality`: whether variants answer as their references do."""

import asyncio
from typing import Any

import orjson
import typer
from rich.table import Table

from policies.quality.sampling import DAY_S
from shunter.command_tree import CommandTree
from shunter.console import AsJson, Bootstrap, Prefix, settings_from, wide_out
from shunter.logs.quality import read_known
from topics import VariantQuality
from topics.iso_time import iso_time

quality = CommandTree(
    add_completion=False, name="quality", help="Whether variants answer as their references do."
)

_SHOWN = {"open": "not known yet", "as_reference": "as the reference", "drifted": "DRIFTED"}


@quality.callback()
def _quality() -> None:
    """Keep `report` a command of its own, though it is the only one."""


@quality.command()
def report(
    as_json: AsJson = False,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Tell of each variant in each pool how its answers differ from its reference's.

    Example: shunter quality report
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    known = asyncio.run(read_known(settings))
    variants = [_figures(known.variants[key]) for key in sorted(known.variants, key=str)]
    spent: list[dict[str, Any]] = [
        {"task": task, "day": _date(each.day * DAY_S), "usd": each.usd, "runs": each.runs}
        for task, each in sorted(known.spent.items())
    ]
    if as_json:
        typer.echo(orjson.dumps({"variants": variants, "spent": spent}).decode())
        return
    if not variants:
        wide_out().print("nothing has been compared; does a class of the policy have a `watch`?")
        return
    table = Table("pool", "variant", "reference", "verdict", "since", "samples", "lately", "within")
    for each in variants:
        table.add_row(
            *(each["pool"], each["variant"], _reference(each)),
            *(_SHOWN[each["verdict"]], each["since"], f"{each['samples']:,}"),
            *(f"{each['recent_difference']:.3f}", f"{each['within']:g}"),
        )
    costs = Table("class", "day", "second runs", "USD")
    for row in spent:
        costs.add_row(row["task"], row["day"], f"{row['runs']:,}", f"{row['usd']:.4f}")
    wide_out().print(table, costs)


def _figures(state: VariantQuality) -> dict[str, Any]:
    return {
        "pool": state.pool,
        "variant": state.variant,
        "reference": state.reference,
        "reference_pool": state.reference_pool,
        "verdict": state.verdict,
        "since": iso_time(state.since),
        "at": iso_time(state.at),
        "samples": state.samples,
        "uncompared": state.uncompared,
        "within": state.within,
        "recent_difference": round(state.recent, 6),
        "classes": {
            task: {
                "samples": tally.samples,
                "mean_difference": round(tally.difference / max(1, tally.samples), 6),
            }
            for task, tally in sorted(state.classes.items())
        },
        "answer_groups": {
            name: {
                "samples": group.samples,
                "mean_difference": round(group.difference / max(1, group.samples), 6),
            }
            for name, group in sorted(state.groups.items())
        },
        "drifted_in": state.drifted_in,
    }


def _reference(figures: dict[str, Any]) -> str:
    pool = figures["reference_pool"]
    return str(figures["reference"]) if pool is None else f"{pool}/{figures['reference']}"


def _date(at: float) -> str:
    return iso_time(at)[:10]
