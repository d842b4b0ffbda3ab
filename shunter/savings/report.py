"""The report: what was paid, what others would have paid, and where each figure comes from."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shunter.backtest.suite import Scored
from shunter.savings.counterfactuals import OURS, QUESTIONS, TOLD
from shunter.savings.traffic import Bill, EvidenceTraffic, Miss, Sources

NOTES = (
    "Paid is what the evidence charges: device time at the price of the pool, as measured.",
    "What others would have paid is by replays in virtual time, on the modelled fleet.",
    "Compare it with the replay of this policy, not with what was paid.",
    "Sessions are not in evidence: a replay has no cached prefixes and no affinity.",
)


@dataclass(frozen=True, slots=True)
class ReportCommands:
    """The commands that make figures again, for one trail and span of time.

    ``trail`` are the options that name both, ``declared`` those that name fleet and policy.
    """

    trail: tuple[str, ...]
    declared: tuple[str, ...]

    def paid(self) -> str:
        """Return the one that makes sums of what was paid."""
        return shlex.join(("shunter", "audit", "report", *self.trail, "--format", "csv"))

    def run(self, name: str) -> str:
        """Return the one that makes a replay."""
        only = () if name == OURS else ("--only", name)
        return self._again(*only, "--no-bound")

    def bound(self) -> str:
        """Return the one that makes the bound."""
        return self._again("--only", OURS)

    def misses(self) -> str:
        """Return the one that counts misses."""
        return self._again("--only", OURS, "--no-bound")

    def request(self, request_id: str) -> str:
        """Return the one that shows a request's evidence."""
        place = self.trail[:2] if self.trail[:1] == ("--archive",) else ()
        return shlex.join(("shunter", "audit", "show", *place, "--", request_id))

    def _again(self, *options: str) -> str:
        asked = (*self.trail, *self.declared, *options, "--json")
        return shlex.join(("shunter", "report", "savings", *asked))


def savings(
    traffic: EvidenceTraffic,
    replayed: int,
    scored: Sequence[Scored],
    bound: tuple[float | None, str | None],
    commands: ReportCommands,
    assumed: Sequence[str],
) -> dict[str, Any]:
    """Return the report, as JSON has it. Money in US dollars.

    Args:
        traffic: what the evidence tells.
        replayed: how many of its requests the replays have.
        scored: replays, this policy's first; none if there is nothing to replay.
        bound: what no schedule undercuts, and why there is none.
        commands: that make figures again.
        assumed: the pools on devices of which no servers were measured.
    """
    ours = scored[0].scores if scored else None
    return {
        "requests": traffic.total.requests,
        "replayed": replayed,
        "left_out": dict(sorted(traffic.left_out.items())),
        "open": traffic.open,
        "unanswered": traffic.unanswered,
        "paid": {
            "total": _bill(traffic.total, commands),
            **{
                by: {name: _bill(bill, commands) for name, bill in sorted(bills.items())}
                for by, bills in traffic.bills.items()
            },
        },
        "policies": {each.name: _policy(each, ours, commands) for each in scored},
        "lower_bound": {
            "usd": bound[0],
            "note": bound[1],
            "command": commands.bound(),
        },
        "questions": _questions(scored, commands),
        "misses": [_miss(miss, traffic.misses[miss], commands) for miss in sorted(traffic.misses)],
        "assumed_pools": list(assumed),
        "notes": list(NOTES),
    }


def _bill(bill: Bill, commands: ReportCommands) -> dict[str, Any]:
    return {
        "requests": bill.requests,
        "completed": bill.completed,
        "paid_usd": bill.paid_usd,
        "input_tokens": bill.input_tokens,
        "output_tokens": bill.output_tokens,
        "slo_attainment": bill.kept / bill.judged if bill.judged else None,
        "evidence": _sources(bill.sources, commands),
        "command": commands.paid(),
    }


def _sources(sources: Sources, commands: ReportCommands) -> dict[str, Any]:
    return {
        "records": sources.records,
        "offsets": {str(number): list(span) for number, span in sorted(sources.spans.items())},
        "examples": [{"id": name, "command": commands.request(name)} for name in sources.examples],
    }


def _policy(
    each: Scored, ours: Mapping[str, Any] | None, commands: ReportCommands
) -> dict[str, Any]:
    found = each.scores
    return {
        "told": TOLD[each.name],
        "cost_usd": found["cost_usd"],
        "saved_usd": None if ours is None else found["cost_usd"] - ours["cost_usd"],
        "slo_attainment": found["slo_attainment"],
        "unanswered": sum(found["refusals"].values()),
        "usd_by_pool": found["usd_by_pool"],
        "command": commands.run(each.name),
    }


def _questions(scored: Sequence[Scored], commands: ReportCommands) -> dict[str, Any]:
    """Return the differences between this policy's replay and the one that each is asked of.

    Waiting earned what a replay without it costs more; constraints cost what one without them
    costs less.
    """
    by_name = {each.name: each.scores["cost_usd"] for each in scored}
    answers = {}
    for question in QUESTIONS:
        if question.run in by_name:
            more_usd = by_name[question.run] - by_name[OURS]
            usd = more_usd if question.is_earned else -more_usd
            told, command = question.told, commands.run(question.run)
            answers[question.name] = {"told": told, "usd": usd, "command": command}
    return answers


def _miss(miss: Miss, sources: Sources, commands: ReportCommands) -> dict[str, Any]:
    return {
        "class": miss.task,
        "objective": miss.objective,
        "why": miss.why,
        "requests": sources.records,
        "evidence": _sources(sources, commands),
        "command": commands.misses(),
    }
