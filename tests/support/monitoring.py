"""The dashboards and rules of deploy/."""

import json
from pathlib import Path

from promql import rules

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARDS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
}
PROMETHEUS = DEPLOY / "prometheus"
RECORDED = rules((PROMETHEUS / "rules.yml").read_text())
