"""A trace as a tree in the terminal: times, durations, places and reasons."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from shunter.jaeger import Event, Span
from streams.live.story import IN_WORDS
from topics.terminal_text import visible_line

# The span attributes that answer where, why, how long and what for.
_PLACE = ("shunter.pool", "shunter.device", "shunter.model_variant", "shunter.precision")
_LABELS = {
    "shunter.decision": "decided",
    "shunter.ended": "ended",
    "messaging.batch.message_count": "batch of",
    "shunter.fallback.reason": "fallback",
}
_STYLES = {"hold": "yellow", "queue": "yellow"}
_CHOICES_SHOWN_MAX = 8


def tree(spans: Sequence[Span]) -> RenderableType:
    """Return the spans of one trace as a renderable for 80 columns or more."""
    if not spans:
        return Text("no spans")
    began = min(span.start for span in spans)
    ended = max(span.end for span in spans)
    known = {span.span_id for span in spans}
    title = Text(f"trace {spans[0].trace_id}", style="bold")
    title.append(f"  {len(spans)} spans, {_s(ended - began)}", style="not bold dim")
    root = Tree(title, guide_style="dim")
    _add(root, spans, [s for s in spans if s.parent_id not in known], began)
    others = list(dict.fromkeys(link.trace_id for span in spans for link in span.links))
    linked = [Text(f"linked to trace {other}", style="dim") for other in others[:3]]
    if len(others) > len(linked):
        linked.append(Text(f"and to {len(others) - len(linked)} more", style="dim"))
    return Group(root, *linked)


def _add(node: Tree, spans: Sequence[Span], here: Sequence[Span], began: float) -> None:
    for span in sorted(here, key=lambda each: (each.start, each.end)):
        below = [each for each in spans if each.parent_id == span.span_id]
        _add(node.add(Group(*_lines(span, began))), spans, below, began)


def _lines(span: Span, began: float) -> Iterator[RenderableType]:
    line = Text(f"+{_s(span.start - began)} ", style="dim")
    style = "bold red" if span.error is not None else f"bold {_STYLES.get(span.name, '')}".strip()
    line.append(visible_line(span.name), style=f"not dim {style}")
    line.append(f"  {_s(span.end - span.start)}", style="not dim")
    line.append(visible_line(f"  {span.service}"))
    yield line
    if span.error is not None:
        kind = span.attributes.get("error.type", "error")
        yield Text(visible_line(f"{kind}: {span.error}"), style="red")
    told = " · ".join(_told(span))
    if told:
        yield Text(visible_line(told))
    choices = [event for event in span.events if event.name == "candidate"]
    if choices:
        yield _choices(choices[:_CHOICES_SHOWN_MAX])
    left_out = len(choices) - _CHOICES_SHOWN_MAX
    left_out = max(left_out, 0) + int(span.attributes.get("shunter.candidates.left_out", 0))
    if left_out:
        yield Text(f"  and {left_out} more", style="dim")


def _told(span: Span) -> Iterator[str]:
    said = span.attributes
    if span.name.startswith("send "):
        return
    yield from (f"{label}: {said[name]}" for name, label in _LABELS.items() if name in said)
    if said.get("shunter.attempt", 1) > 1:
        yield f"attempt {said['shunter.attempt']}"
    for name in ("shunter.decision.reason", "shunter.hold.release_reason"):
        if name in said and said[name] != said.get("error.type"):
            yield IN_WORDS.get(said[name], said[name])
    if place := " ".join(str(said[name]) for name in _PLACE if name in said):
        yield place
    yield from _figures(said)


def _figures(said: Mapping[str, Any]) -> Iterator[str]:
    if "gen_ai.usage.output_tokens" in said:
        yield f"{said['gen_ai.usage.input_tokens']}+{said['gen_ai.usage.output_tokens']} tokens"
    if "shunter.cost.usd" in said:
        yield f"${said['shunter.cost.usd']:.7f}"
    if "shunter.deadline.slack_s" in said:
        yield f"{_s(said['shunter.deadline.slack_s'])} to spare"
    if said.get("shunter.sampled.late"):
        yield "traced late"


def _choices(events: Sequence[Event]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    # If a line is too long, the rest goes below its own beginning.
    table.add_column(overflow="fold")
    for event in events:
        is_chosen = bool(event.attributes.get("shunter.candidate.is_chosen"))
        mark = Text("  ●" if is_chosen else "  ○", style="green" if is_chosen else "dim")
        table.add_row(mark, _choice(event.attributes))
    return table


def _choice(said: Mapping[str, Any]) -> Text:
    line = Text(visible_line(str(said.get("shunter.candidate", "?")).partition(":")[0]))
    if "shunter.candidate.cost_usd" in said:
        line.append(f"  ${said['shunter.candidate.cost_usd']:.7f}")
    if "shunter.candidate.finish_s" in said:
        line.append(f"  {_s(said['shunter.candidate.finish_s'])}")
    if "shunter.candidate.chance" in said:
        line.append(f"  {said['shunter.candidate.chance']:.0%}")
    line.append(visible_line(f"  {said.get('shunter.candidate.reason', '')}"), style="dim")
    return line


def _s(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"
