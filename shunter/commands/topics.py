"""`shunter topics`: create, check and describe all topics, tell who may use them, mend them."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version

import orjson
import typer
from rich.table import Table
from rich.text import Text

from shunter.client.kafka import note, run
from shunter.command_tree import CommandTree
from shunter.commands.acls import acls
from shunter.commands.recover import recover
from shunter.commands.tidy import tidy
from shunter.console import AsJson, Bootstrap, FleetFile, Prefix, out, settings_from
from streams.config.declarations import load_fleet
from topics import Catalogue, Settings
from topics.admin import provisioning as administration
from topics.admin.asyncapi import asyncapi
from topics.admin.replication import REPLICAS
from topics.admin.topic_report import PARTITIONS, CatalogueReport

topics = CommandTree(add_completion=False, name="topics", help="Create and check the topics.")
topics.command()(acls)
topics.command()(recover)
topics.command()(tidy)
STYLES = {"created": "green", "ok": "green", "missing": "red", "differs": "yellow"}


@topics.command()
def apply(
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    fleet: FleetFile = None,
    as_json: AsJson = False,
) -> None:
    """Create what is missing of the topics for a fleet; what exists is never changed or deleted.

    Partitions come from SHUNTER_PARTITIONS. Where there are three brokers, a topic has three
    replicas, two of which must have each record, or as many as SHUNTER_REPLICATION_FACTOR says. A
    topic that exists with other settings is warned of, with the commands that would mend it: the
    exit code is 0 all the same, and `shunter topics describe` is the check that fails.

    Example: shunter topics apply --fleet fleet.yaml
    """
    settings = _settings(bootstrap_servers, topic_prefix, fleet)
    report = run(administration.apply(settings, _pools(settings)))
    _show(report, settings, as_json=as_json)
    if shortfall := report.replication.shortfall():
        note(shortfall)


@topics.command()
def describe(
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    fleet: FleetFile = None,
    as_json: AsJson = False,
) -> None:
    """Show how the topics for a fleet stand; changes nothing.

    The exit code is 1 when a topic is missing or differs from what it should be.

    Example: shunter topics describe --json
    """
    settings = _settings(bootstrap_servers, topic_prefix, fleet)
    report = run(administration.describe(settings, _pools(settings)))
    _show(report, settings, as_json=as_json)
    if not report.is_complete:
        raise typer.Exit(1)


@topics.command("asyncapi")
def document(topic_prefix: Prefix = None, fleet: FleetFile = None) -> None:
    """Print the AsyncAPI document of the topics for a fleet, as JSON; asks no broker.

    Example: shunter topics asyncapi > asyncapi.json
    """
    settings = _settings(None, topic_prefix, fleet)
    described = asyncapi(Catalogue(settings).topics(_pools(settings)), version("shunter"))
    typer.echo(orjson.dumps(described, option=orjson.OPT_INDENT_2).decode())


def _settings(bootstrap: Bootstrap, prefix: Prefix, fleet: FleetFile) -> Settings:
    return settings_from(bootstrap_servers=bootstrap, topic_prefix=prefix, fleet=fleet)


def _pools(settings: Settings) -> Iterable[str]:
    return load_fleet(settings.fleet).pools


def _show(report: CatalogueReport, settings: Settings, *, as_json: bool) -> None:
    if as_json:
        shown = {
            "complete": report.is_complete,
            "brokers": report.replication.brokers,
            "topics": [asdict(t) for t in report.topics],
        }
        typer.echo(orjson.dumps(shown).decode())
    else:
        out.print(_table(report))
    for line in _remedies(report, settings):
        note(line)


def _table(report: CatalogueReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("topic", overflow="fold")
    table.add_column("state")
    table.add_column("partitions", justify="right")
    table.add_column("replicas", justify="right")
    if report.names("differs"):
        table.add_column("setting: wanted, found", overflow="fold")
    for topic in report.topics:
        differences = [f"{d.setting}: {d.wanted}, {d.found}" for d in topic.differences]
        table.add_row(
            topic.name,
            Text(topic.state, STYLES[topic.state]),
            *(
                [""] * 2
                if topic.state == "missing"
                else map(str, (topic.partitions, topic.replicas))
            ),
            *(["\n".join(differences)] if differences else []),
        )
    return table


def _remedies(report: CatalogueReport, settings: Settings) -> Iterator[str]:
    if missing := report.names("missing"):
        yield f"{len(missing)} missing: `shunter topics apply` creates them"
    for topic in report.topics:
        shape = {PARTITIONS, REPLICAS}
        configs = [f"{d.setting}={d.wanted}" for d in topic.differences if d.setting not in shape]
        if configs:
            yield (
                f"{topic.name}: kafka-configs.sh --bootstrap-server {settings.bootstrap_servers}"
                f" --alter --entity-type topics --entity-name {topic.name}"
                f" --add-config {','.join(configs)}"
            )
    differing = {d.setting for topic in report.topics for d in topic.differences}
    if REPLICAS in differing:
        yield (
            "a topic with fewer replicas than it could have loses more with a broker than it needs"
            " to: add them with kafka-reassign-partitions.sh, or set SHUNTER_REPLICATION_FACTOR"
            f" (now {settings.replication_factor}) to the number found"
        )
    if PARTITIONS in differing:
        yield (
            "partitions are not to be changed under a running system, where the lanes have as many"
            " as ingest and each key keeps its own: set SHUNTER_PARTITIONS (now"
            f" {settings.partitions}) to the number found, or take another topic prefix"
        )
