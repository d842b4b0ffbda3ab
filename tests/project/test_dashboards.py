"""Dashboards and alerts: each query is PromQL and names metrics and labels that there are."""

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from monitoring import DASHBOARDS, DEPLOY, PROMETHEUS, RECORDED
from promql import filled, legend_labels, rules, uses

from streams.metrics import METRICS

ALERTS = rules((PROMETHEUS / "alerts.yml").read_text())
# What Prometheus adds to each series.
OF_ALL = {"job", "instance"}


def known() -> dict[str, set[str]]:
    """The labels of each name that a query may use."""
    found = {"up": set(OF_ALL)}
    for metric in METRICS:
        for name in metric.series:
            found[name] = {*metric.labels, *OF_ALL, *({"le"} if name.endswith("_bucket") else ())}
    for rule in RECORDED:
        # Named by Prometheus' convention: what it is grouped by stands first.
        found[rule["record"]] = set(rule["record"].partition(":")[0].split("_"))
    return found


KNOWN = known()


def panels() -> list[Any]:
    return [
        pytest.param(panel, id=f"{name}-{panel['title']}")
        for name, dashboard in DASHBOARDS.items()
        for panel in dashboard["panels"]
    ]


def assert_known(query: str) -> None:
    for use in uses(query):
        assert use.name in KNOWN, f"there is no metric {use.name}"
        missing = use.labels - KNOWN[use.name]
        assert not missing, f"{use.name} has no label {missing}"


@pytest.mark.parametrize("panel", panels())
def test_the_queries_of_a_panel_name_what_there_is(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        assert_known(filled(target["expr"]))
        # A label that the query has lost would show as nothing.
        kept = {label for use in uses(filled(target["expr"])) for label in use.labels}
        assert legend_labels(target["legendFormat"]) <= kept


@pytest.mark.parametrize(
    "rule", [*RECORDED, *ALERTS], ids=lambda r: r.get("record", r.get("alert"))
)
def test_rules_name_what_there_is(rule: dict[str, Any]) -> None:
    assert_known(rule["expr"])
    if "alert" in rule:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        labels = {lb for use in uses(rule["expr"]) for lb in {*use.labels, *KNOWN[use.name]}}
        assert legend_labels(rule["annotations"]["summary"]) <= labels


@pytest.mark.parametrize(
    "query",
    [
        "sum(rate(shunter_placements[1m]))",
        'shunter_placements_total{colour="red"}',
        "sum by (tenant) (rate(shunter_placements_total[1m]))",
        "sum by (le) (rate(shunter_cost_usd_total[1m]))",
    ],
)
def test_a_query_that_names_what_there_isnt_is_found(query: str) -> None:
    with pytest.raises(AssertionError):
        assert_known(query)


def test_what_is_no_promql_is_found() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        uses("sum by (task (shunter_cost_usd_total)")


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_can_be_loaded(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == name
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/shunter.yaml").read_text())
    uids = {source["uid"] for source in sources["datasources"]}
    named = [*dashboard["panels"], *dashboard["templating"]["list"]]
    assert {each["datasource"]["uid"] for each in named} <= uids
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    for variable in dashboard["templating"]["list"]:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
        assert found, variable["query"]
        assert found[2] in KNOWN[found[1]]
    spaces = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(space["x"] + space["w"] <= 24 for space in spaces)


def test_the_dashboards_are_those_that_are_told_of() -> None:
    wanted = {f"shunter-{name}" for name in ("overview", "pool", "class", "money")}
    assert DASHBOARDS.keys() == wanted


def test_each_alert_is_seen_to_fire() -> None:
    cases = yaml.safe_load((PROMETHEUS / "tests.yml").read_text())["tests"]
    fired = {
        each["alertname"]
        for case in cases
        for each in case.get("alert_rule_test", ())
        if each["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in ALERTS}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml", "alerts.yml"],
        ["test", "rules", "tests.yml"],
    ],
    ids=" ".join,
)
def test_promtool_agrees(command: list[str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing; it comes with Debian's package prometheus")
    told = subprocess.run(
        [promtool, *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr
