"""Names in a PromQL query: metrics, and the labels that it wants of each."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser as promql
import yaml

# Grafana's own, as they are for everything.
_VARIABLES = {"$__rate_interval": "1m", "$task": ".*", "$pool": ".*"}


@dataclass(frozen=True)
class Use:
    """A metric, and the labels that a query matches it by or groups it by."""

    name: str
    labels: frozenset[str]


def filled(query: str, interval: str = "1m") -> str:
    """Return a dashboard's query as Prometheus gets it."""
    for variable, value in (_VARIABLES | {"$__rate_interval": interval}).items():
        query = query.replace(variable, value)
    assert "$" not in query, query
    return query


def uses(query: str) -> list[Use]:
    """Return what a query uses. Raises ValueError where it is no PromQL."""
    return list(_walk(promql.parse(query), frozenset()))


def _walk(node: Any, grouped: frozenset[str]) -> Iterator[Use]:
    match type(node).__name__:
        case "VectorSelector":
            labels = {matcher.name for matcher in node.matchers.matchers}
            yield Use(node.name, grouped | labels)
        case "MatrixSelector":
            yield from _walk(node.vector_selector, grouped)
        case "AggregateExpr":
            own = frozenset(node.modifier.labels) if node.modifier is not None else frozenset()
            # What the outer one groups by, the inner one must have kept.
            if node.modifier is not None:
                assert grouped - {"le"} <= own, f"{grouped} are lost by {node.prettify()}"
            yield from _walk(node.expr, own or grouped)
        case "BinaryExpr":
            yield from _walk(node.lhs, grouped)
            yield from _walk(node.rhs, grouped)
        case "Call":
            for argument in node.args:
                yield from _walk(argument, grouped)
        case "ParenExpr" | "UnaryExpr" | "SubqueryExpr":
            yield from _walk(node.expr, grouped)
        case "NumberLiteral" | "StringLiteral":
            return
        case other:
            raise AssertionError(f"{other} is not understood")


def rules(text: str) -> list[dict[str, Any]]:
    """Return the rules of a file."""
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def legend_labels(legend: str) -> set[str]:
    """Return the labels that a legend, or an annotation, names."""
    return set(re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*}}", legend))
