"""Inputs of a decision, small enough to record with it, and the replay of a release."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import inf
from typing import Any

from policies.batching.fair_queue import Member
from policies.batching.groups import group_in
from policies.batching.release import find_target
from policies.batching.windows import Release, windows_of
from policies.config.options import ModelOptions, Options
from policies.config.policy import Policy
from policies.fleet_state.candidate_load import OptionState, PoolLoad, standing_in
from policies.fleet_state.served_loads import ServedLoads
from policies.fleet_state.sessions import Credit
from policies.scoring.situation import Situation
from topics import LatencyError, Profile
from topics.records.decision_columns import NO_LOAD, NO_WISH
from topics.records.decision_rows import RecordedInputs, plain, trimmed
from topics.records.decision_tables import Tables, raw_row
from topics.records.frozen import dataclass

# Of what is known of one variant in a load.
_NO_VARIANT = (None, None, False)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The part of a situation that a decision depends on, besides policy and fleet.

    ``loads`` are those of the pools that serve the request's model, ``arrivals_per_s`` is its
    group's rate, ``credit`` the tokens that its session may have cached.
    """

    loads: dict[str, PoolLoad]
    arrivals_per_s: float
    credit: Credit | None = None

    def recorded(self, tables: Tables) -> RecordedInputs:
        """Return them in the form of evidence.

        Args:
            tables: with the pools and variants of all candidates, which in a decision all options
                are. Of other variants in these pools it matters whether any runs, where none of
                these does. Without candidates in it all is told.
        """
        rows = _rows(self.loads, tables, frozenset(tables.variants) or None)
        return RecordedInputs(rows, plain(self.arrivals_per_s), _credit_row(self.credit))

    def standings(self, serving: ModelOptions) -> Sequence[OptionState]:
        """Return the standings of the options that serve the model, in their order."""
        return [standing_in(self.loads, option) for option in serving.options]

    def kept(self) -> "Inputs":
        """Return the same, also once a load has changed."""
        loads = {pool: load.copied() for pool, load in self.loads.items()}
        return Inputs(loads, self.arrivals_per_s, self.credit)


class LiveInputs(Inputs):
    """Inputs as they are now, with what is kept of them from decision to decision."""

    __slots__ = ("_rows", "_served")

    def __init__(
        self, served: ServedLoads, arrivals_per_s: float, credit: Credit | None = None
    ) -> None:
        super().__init__(served.loads, arrivals_per_s, credit)
        self._served = served
        self._rows: list[Any] | None = None

    def standings(self, serving: ModelOptions) -> Sequence[OptionState]:
        """Return them, each as it was made when its load last changed."""
        known = self._served
        return known.standings if serving is known.serving else super().standings(serving)

    def kept(self) -> Inputs:
        """Return the same, also once a load has changed."""
        numbering = self._served.serving.numbering
        if numbering.has_namesakes:
            return super().kept()
        self._rows = list(self._written())
        return self

    def recorded(self, tables: Tables) -> RecordedInputs:
        """Return them in the form of evidence, in which most pools stand as in the last one."""
        if tables.pools is not self._served.serving.numbering.pools:
            return super().recorded(tables)
        rows = self._written() if self._rows is None else self._rows
        return RecordedInputs(rows, plain(self.arrivals_per_s), _credit_row(self.credit))

    def _written(self) -> list[Any]:
        """Return the rows of all pools, those made anew whose load has changed."""
        served, numbering = self._served, self._served.serving.numbering
        rows, names = served.rows, numbering.variant_names
        for pool, at in served.unwritten.items():
            rows[at] = _pool_row(served.loads.get(pool), pool, numbering.regions[at], names)
        served.unwritten.clear()
        return rows


def _credit_row(credit: Credit | None) -> Sequence[Any] | None:
    return None if credit is None else (credit.pool, credit.variant, credit.tokens)


@dataclass(frozen=True, slots=True)
class WaitingMember:
    """The values of a held member that a release depends on and that differ within a group."""

    id: str
    held_at: float
    created_at: float
    deadline: float
    window_s: float
    input_tokens: int
    output_tokens: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    output_tokens_high: int | None = None
    certain_tokens: int | None = None
    prompts: int = 1
    replies: int = 1


@dataclass(frozen=True, slots=True)
class ReleaseInputs:
    """The part of a situation that a release depends on, besides policy, fleet and first member.

    ``loads`` are those of the pools that serve the model, ``head`` the examined members in release
    order, of ``waiting`` in all. In all other relevant values they equal the first, whose profile
    is in the same evidence. ``idle_arrivals_per_s`` is the rate of their group if their target
    pool was idle.
    """

    loads: dict[str, PoolLoad]
    head: tuple[WaitingMember, ...]
    waiting: int
    idle_arrivals_per_s: float | None = None

    def recorded(self, tables: Tables) -> RecordedInputs:
        """Return them in the form of evidence; an option that was passed over is no candidate."""
        head = [_waiting_row(each) for each in self.head]
        idle_per_s = plain(self.idle_arrivals_per_s)
        rows = _rows(self.loads, tables, None)
        return RecordedInputs(rows, None, None, head, self.waiting, idle_per_s)


def inputs_of(
    profile: Profile, situation: Situation, now: float, group: str | None = None
) -> Inputs:
    """Return the inputs of a decision made now, to be recorded before the view changes.

    Args:
        profile: profile of the request.
        situation: situation of the decision.
        now: epoch seconds.
        group: of the profile, where it is known.
    """
    group = group or group_in(profile, situation.options, situation.policy)
    rate_per_s = situation.arrivals.rate_per_s(group, now)
    credit = situation.view.sessions.credit(profile, now)
    serving = situation.options.serving.get(profile.model)
    if serving is None:
        return Inputs({}, rate_per_s, credit)
    return LiveInputs(situation.view.served(serving), rate_per_s, credit)


def release_inputs_of(release: Release, situation: Situation) -> ReleaseInputs:
    """Return the inputs of a release just judged, before the view counts it."""
    profile = release.head[0].profile
    head = tuple(_waiting(member) for member in release.head)
    loads = {pool: load.copied() for pool, load in _loads(profile.model, situation).items()}
    return ReleaseInputs(loads, head, release.waiting, release.target.idle_arrivals_per_s)


def release_again(
    first: Profile, inputs: ReleaseInputs, options: Options, policy: Policy, now: float
) -> Release | None:
    """Return the release that these inputs lead to, or None.

    Args:
        first: the recorded profile of the first member.
        inputs: the recorded inputs.
        options: options of the fleet of the recorded version.
        policy: policy of the recorded version.
        now: time of the judgement, epoch seconds.
    """
    head = [_member(first, waiting) for waiting in inputs.head]
    # Where no rate was written down, none played a part; with this one waiting always pays.
    rate_per_s = inf if inputs.idle_arrivals_per_s is None else inputs.idle_arrivals_per_s
    target = find_target(head, inputs.loads, rate_per_s, options, policy, now)
    if target is None:
        return None
    found = windows_of(policy).judge(head, inputs.waiting, target, now)
    return found if isinstance(found, Release) else None


def _waiting(member: Member) -> WaitingMember:
    profile = member.profile
    return WaitingMember(
        profile.id,
        member.held_at,
        profile.created_at,
        profile.deadline,
        profile.window_s,
        profile.input_tokens,
        profile.output_tokens,
        profile.ttft_s,
        profile.tpot_s,
        profile.output_tokens_high,
        profile.certain_tokens,
        profile.prompts,
        profile.replies,
    )


def _member(first: Profile, waiting: WaitingMember) -> Member:
    own = asdict(waiting)
    held_at = own.pop("held_at")
    return Member(replace(first, **own), "", held_at, 0)


def _loads(model: str, situation: Situation) -> dict[str, PoolLoad]:
    """Return the loads of the pools that serve a model; they change with the view."""
    loads = situation.view.loads()
    options = situation.options.by_model.get(model, ())
    return {o.pool: loads[o.pool] for o in options if o.pool in loads}


def _rows(
    loads: Mapping[str, PoolLoad], tables: Tables, variants: frozenset[str] | None
) -> list[Any]:
    """Return the rows of all pools; each is kept until its load changes."""
    tables.add(loads)
    return [
        _pool_row(loads.get(pool), pool, region, variants)
        for pool, region in zip(tables.pools, tables.regions, strict=True)
    ]


def _pool_row(
    load: PoolLoad | None, pool: str, region: str | None, variants: frozenset[str] | None
) -> Any:
    if load is None:
        return pool, region
    key = (pool, region, variants)
    row = load.rows.get(key)
    if row is None:
        row = load.rows[key] = raw_row((pool, region, _load_row(load, variants)))
    return row


def _load_row(load: PoolLoad, variants: frozenset[str] | None) -> Sequence[Any]:
    counts = load.running_by_variant
    if not (load.speed_by_variant or load.failing or load.learned or load.drifted):
        return _load_of(load, _counted(counts, variants))
    names = {*counts, *load.speed_by_variant, *load.failing, *load.learned, *load.drifted}
    if variants is not None:
        names &= variants
    known = {name: _variant_row(load, name) for name in names}
    if not any(counts.get(name) for name in names):
        known |= {name: (count,) for name, count in counts.items() if count and name not in known}
    return _load_of(load, known)


def _counted(
    counts: Mapping[str, int], variants: frozenset[str] | None
) -> dict[str, Sequence[Any]]:
    """Return the rows of a load's variants where nothing but their sequences is known."""
    known: dict[str, Sequence[Any]] = {
        name: (count,) for name, count in counts.items() if variants is None or name in variants
    }
    if not any(counts[name] for name in known):
        known |= {name: (count,) for name, count in counts.items() if count and name not in known}
    return known


def _load_of(load: PoolLoad, known: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    row = (
        load.workers,
        load.running,
        load.queued,
        plain(load.backlog_s),
        plain(load.round_s),
        plain(load.kv_usage),
        plain(load.failure_rate),
        known or None,
        None if load.constants is None else [plain(each) for each in load.constants],
        None if load.power_kw is None else [plain(each) for each in load.power_kw],
        load.is_misfit,
        None if load.gathered is None else [plain(each) for each in load.gathered],
        None if load.transport is None else [plain(each) for each in load.transport],
        load.is_filled,
    )
    return trimmed(row, NO_LOAD)


def _variant_row(load: PoolLoad, name: str) -> Sequence[Any]:
    running = load.running_by_variant.get(name)
    known = (running, plain(load.speed_by_variant.get(name)), name in load.failing)
    learned = load.learned.get(name)
    errors: Sequence[Any] = (None, None, None)
    if learned is not None:
        ttft_error, tpot_error, reuse = learned
        errors = (_plain_error(ttft_error), _plain_error(tpot_error), plain(reuse))
    if name in load.drifted:
        return (*known, *errors, True)
    return trimmed(known, _NO_VARIANT) if learned is None else (*known, *errors)


def _plain_error(error: LatencyError | None) -> Sequence[Any] | None:
    return None if error is None else [plain(each) for each in error]


def _waiting_row(waiting: WaitingMember) -> Sequence[Any]:
    high, certain = waiting.output_tokens_high, waiting.certain_tokens
    wishes = (plain(waiting.ttft_s), plain(waiting.tpot_s), high, certain)
    counts = (waiting.prompts, waiting.replies)
    return (
        waiting.id,
        plain(waiting.held_at),
        plain(waiting.created_at),
        plain(waiting.deadline),
        plain(waiting.window_s),
        waiting.input_tokens,
        waiting.output_tokens,
        *trimmed((*wishes, *counts), NO_WISH),
    )
