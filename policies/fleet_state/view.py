"""The fleet view: the current knowledge of each pool's load."""

from collections.abc import Iterable, Mapping, Sequence
from math import exp, fsum, inf, log
from statistics import fmean

from policies.config.options import ModelOptions, Option, Options
from policies.fleet_state.candidate_load import (
    NOBODY,
    NOTHING,
    Learned,
    OptionState,
    PoolLoad,
    standing_in,
)
from policies.fleet_state.gathering import gathers
from policies.fleet_state.misfits import GRACE_S, Misfit, misfit
from policies.fleet_state.pool_stats import (
    Told,
    known_of,
    pooled,
    pooled_share,
    pooled_speed,
)
from policies.fleet_state.power import tell_power
from policies.fleet_state.served_loads import ServedLoads
from policies.fleet_state.sessions import Sessions
from policies.hardware.constants import AS_DECLARED, believable
from policies.learning.output_lengths import Lengths
from topics import LatencyError, PoolStatus, VariantStatus

# A worker that has missed this many heartbeats is taken for dead.
MISSED_BEATS_MAX = 4
# A heartbeat from further ahead was told by a clock that was wrong: it would be alive for ever.
AHEAD_S_MAX = 60.0
# Less is no time to work: standings are costly, and must last for the requests of one poll.
WORKED_S_MIN = 0.005
# A heartbeat may lack what was sent so long before it: the worker had not read it yet. A limit on
# power counts such requests beside those that it tells of, some of them twice.
UNSEEN_S = 2.0


class FleetView:
    """The newest heartbeat of each worker, and the work sent since.

    ``version`` grows by one with each change, so that a decision can name its view.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._reports: dict[str, dict[str, PoolStatus]] = {}
        self._loads: dict[str, PoolLoad] = {}
        self._served: dict[ModelOptions, ServedLoads] = {}
        self._drifted: Mapping[str, frozenset[str]] = {}
        self._unlike_since: dict[tuple[str, str], float] = {}
        self.refused: dict[tuple[str, str], int] = {}
        """Heartbeats refused, by pool and by what is not as declared."""
        self.misfits: dict[tuple[str, str], Misfit] = {}
        """Workers, by pool and instance, whose last heartbeat was refused."""
        self.lengths = Lengths()
        self.sessions = Sessions()
        self.version = 0
        self._worked_until = -inf
        # Of pools with a limit on power: when the last requests were sent, and how many.
        self._sent: dict[str, list[tuple[float, int]]] = {}

    def report(self, status: PoolStatus) -> None:
        """Record a heartbeat. One of an unknown pool counts once the fleet has that pool."""
        self._reports.setdefault(status.pool, {})[status.instance] = status
        self._judge(status)
        if (status.pool, status.instance) in self.misfits:
            key = (status.pool, self.misfits[status.pool, status.instance].what)
            self.refused[key] = self.refused.get(key, 0) + 1
            self.lengths.drop(_worker(status.pool, status.instance))
            self._refresh(status.pool)
            return
        self.lengths.report(_worker(status.pool, status.instance), status.output_lengths)
        self._refresh(status.pool)

    def judged(self, drifted: Mapping[str, frozenset[str]]) -> None:
        """Set the variants whose answers have drifted from a reference, by pool."""
        self._drifted = drifted
        for pool, load in self._loads.items():
            found = drifted.get(pool, frozenset())
            if found != load.drifted:
                load.drifted = found
                load.has_changed()
                self.version += 1

    def under(self, options: Options) -> "FleetView":
        """Return this view under another fleet; this one stays unchanged.

        Reply lengths and sessions don't depend on the fleet; both views share them.
        """
        if options is self._options:
            return self
        view = FleetView(options)
        view.lengths, view.sessions = self.lengths, self.sessions
        view._reports = {pool: dict(reports) for pool, reports in self._reports.items()}
        view.version, view._drifted, view._sent = self.version, self._drifted, self._sent
        view._unlike_since, view.refused = dict(self._unlike_since), self.refused
        for pool, reports in view._reports.items():
            for status in reports.values():
                view._judge(status)
            view._refresh(pool)
        return view

    def prune(self, now: float) -> None:
        """Drop workers that have stopped reporting."""
        for pool, reports in self._reports.items():
            dead = [name for name, s in reports.items() if not is_live(s, now)]
            for name in dead:
                del reports[name]
                self.misfits.pop((pool, name), None)
                self._unlike_since.pop((pool, name), None)
                self.lengths.drop(_worker(pool, name))
            if dead:
                self._refresh(pool)

    def load(self, pool: str) -> PoolLoad:
        """Return a pool's load; empty without workers."""
        return self._loads.get(pool, NOBODY)

    def standing(self, option: Option) -> OptionState:
        """Return an option's standing; the same until the load of its pool changes."""
        return standing_in(self._loads, option)

    def reports(self, pool: str) -> Sequence[PoolStatus]:
        """Return the newest heartbeat of each live worker of a pool."""
        if self.load(pool).is_misfit:
            return []
        return [s for s in self._reports.get(pool, {}).values() if s.state == "up"]

    def loads(self) -> Mapping[str, PoolLoad]:
        """Return the load of every pool that has reported."""
        return self._loads

    def served(self, serving: ModelOptions) -> ServedLoads:
        """Return the loads of the pools that serve a model, as they are now."""
        found = self._served.get(serving)
        if found is None:
            found = self._served[serving] = ServedLoads(serving, self._loads)
        found.refresh()
        return found

    def work_off(self, now: float) -> None:
        """Take off the backlogs what the pools have worked since they were last looked at.

        By one clock only: since the first look after a heartbeat, which was told by another.

        Args:
            now: epoch seconds.
        """
        if 0.0 <= now - self._worked_until < WORKED_S_MIN:
            return
        self._worked_until = now
        for load in self._loads.values():
            if load.backlog_s > 0 and (passed_s := load.worked(now)):
                load.backlog_s = max(0.0, load.backlog_s - passed_s)
                load.has_changed()

    def add_sent(
        self,
        option: Option,
        device_s: float,
        count: int = 1,
        tokens: int = 0,
        now: float | None = None,
        requests: int = 1,
    ) -> None:
        """Count work sent to a pool until its next heartbeat includes it.

        Meanwhile the pool works on what it has, see `work_off`.

        Args:
            option: its target.
            device_s: device time before a later request can start, in seconds.
            count: number of answers.
            tokens: tokens of KV memory that they need together, prompts and replies.
            now: epoch seconds; None: no time has passed.
            requests: number of requests that these answers are of.
        """
        load = self._loads.get(option.pool)
        if load is None:
            return
        replicas = max(1, load.workers) * option.replicas
        if now is not None:
            load.backlog_s = max(0.0, load.backlog_s - load.worked(now))
        load.backlog_s += device_s / replicas
        load.kv_usage += tokens / (option.kv_capacity_tokens * replicas)
        running = load.running_by_variant
        running[option.variant] = running.get(option.variant, 0) + count
        self._tell_rounds(option.pool, load)
        load.has_changed()
        if option.is_power_limited:
            load.draws_for(load.requests + requests, load.aside)
            if now is not None:
                self._sent.setdefault(option.pool, []).append((now, requests))
            tell_power(self._options, self._loads, option.pool)

    def _judge(self, status: PoolStatus) -> None:
        """Note whether a worker is what the fleet declares of its pool, if it has that pool."""
        key, options = (status.pool, status.instance), self._options.by_pool.get(status.pool)
        found = None
        if options and status.state == "up":
            version = self._options.pool_versions.get(status.pool, "")
            found = misfit(status, options, version)
        if found is None or found.what != "fleet_version":
            self._unlike_since.pop(key, None)
        elif status.at - self._unlike_since.setdefault(key, status.at) < GRACE_S:
            found = None
        if found is None:
            self.misfits.pop(key, None)
        else:
            self.misfits[key] = found

    def _refresh(self, pool: str) -> None:
        if pool not in self._options.by_pool:
            return
        # They share its lanes, so that what is sent to the others may come to the one that isn't.
        if any((pool, s.instance) in self.misfits for s in self._reports[pool].values()):
            self._take(pool, PoolLoad(is_misfit=True), [])
            return
        reports = [s for s in self._reports[pool].values() if s.state == "up"]
        load = PoolLoad(
            workers=len(reports),
            running=sum(s.running for s in reports),
            queued=sum(s.queued for s in reports),
            backlog_s=min((s.backlog_s for s in reports), default=0.0),
        )
        speeds: dict[str, list[Told]] = {}
        for status in reports:
            for variant, v in status.variants.items():
                counts = load.running_by_variant
                counts[variant] = counts.get(variant, 0) + v.running + v.queued
                speeds.setdefault(variant, []).append((v.speed, v.speed_known))
        for variant, each in speeds.items():
            speed = pooled_speed(each)
            if speed is not None:
                load.speed_by_variant[variant] = speed
        load.failing, load.drifted = _failing(reports), self._drifted.get(pool, frozenset())
        rates = [(s.failure_rate, s.failure_known) for s in reports if s.failure_rate is not None]
        if rates:
            declared = self._options.by_pool[pool][0].failure_rate
            load.failure_rate = round(pooled_share(rates, declared), 4)
        load.learned = _learned(reports)
        load.is_filled = _is_filled(reports, load.learned)
        load.constants = _constants(reports)
        load.transport = _transport(reports)
        servers = [s.server for s in reports if s.server is not None]
        used = [server.kv_usage for server in servers if server.kv_usage is not None]
        load.kv_usage = round(fmean(used), 4) if used else 0.0
        self._tell_rounds(pool, load)
        # Its time counts from the next look on.
        self._worked_until = -inf
        self._take(pool, load, reports)

    def _take(self, pool: str, load: PoolLoad, counted: Sequence[PoolStatus]) -> None:
        """Take a pool's load, which counts these of its workers, and tell what it draws."""
        self._loads[pool] = load
        self.version += 1
        if not self._options.by_pool[pool][0].is_power_limited:
            return
        reports = self._reports[pool].values()
        told_at = min((s.at for s in reports), default=inf)
        late = [each for each in self._sent.get(pool, ()) if each[0] > told_at - UNSEEN_S]
        self._sent[pool] = late
        drawing = [s for s in reports if s.state != "down"]
        taken = sum(map(_requests, drawing)) + sum(requests for _, requests in late)
        load.draws_for(taken, sum(s not in counted for s in drawing))
        tell_power(self._options, self._loads, pool)

    def _tell_rounds(self, pool: str, load: PoolLoad) -> None:
        """Set what one iteration of all variants that run takes."""
        running, options = load.running_by_variant, self._options.by_pool[pool]
        found = [load.steps_s(option) for option in options if running.get(option.variant, 0)]
        load.round_s = sum([own_s for own_s, _ in found])
        if gathers(options[0]):
            load.gathered = sum([mixed_s for _, mixed_s in found]), len(found)


def _worker(pool: str, instance: str) -> str:
    return f"{pool}/{instance}"


def _requests(status: PoolStatus) -> int:
    """Return how many requests a worker has: of those with work at least one."""
    answers = sum(v.running + v.queued for v in status.variants.values())
    return min(answers, max(1, status.running + status.queued))


def _learned(reports: Sequence[PoolStatus]) -> dict[str, Learned]:
    """Return for each variant the means of the workers' learned values, if any."""
    told: dict[str, list[VariantStatus]] = {}
    for status in reports:
        for variant, each in status.variants.items():
            told.setdefault(variant, []).append(each)
    found = {
        variant: Learned(
            _mean_error([v.ttft_error for v in each if v.ttft_error is not None]),
            _mean_error([v.tpot_error for v in each if v.tpot_error is not None]),
            round(pooled_share([(v.reuse, v.reuse_known) for v in each], 0.0), 3),
        )
        for variant, each in told.items()
    }
    return {variant: learned for variant, learned in found.items() if learned != NOTHING}


def _is_filled(reports: Sequence[PoolStatus], learned: Mapping[str, Learned]) -> bool:
    """Return True if urgent requests run in a pool of which no replica is idle."""
    if any(status.idle_replicas is None for status in reports):
        # Of replicas that aren't told, errors tell that they are full: those are learned of
        # promises near an SLO alone.
        return any(found.ttft_error or found.tpot_error for found in learned.values())
    return any(s.urgent for s in reports) and not any(s.idle_replicas for s in reports)


def _constants(reports: Sequence[PoolStatus]) -> tuple[float, ...] | None:
    """Return the workers' factors, each a mean in the log, and the part that was measured."""
    told = [(believable(s.factors), s.factors_known) for s in reports]
    found = [(factors, known) for factors, known in told if factors is not None]
    known = min(1.0, known_of([(0.0, known) for _, known in found]))
    if not known:
        return None
    means = [
        exp(pooled([(log(factors[at]), known) for factors, known in found], 0.0))
        for at in range(len(AS_DECLARED))
    ]
    return (*(round(each, 4) for each in means), round(known, 3))


def _transport(reports: Sequence[PoolStatus]) -> tuple[float, float] | None:
    """Return what the workers' requests take to them, a mean in the log, and the measured part."""
    told = [
        (log(s.transport_s), s.transport_known)
        for s in reports
        if s.transport_s is not None and 0 < s.transport_s < inf
    ]
    known = min(1.0, known_of(told))
    if not known:
        return None
    weights = [min(1.0, max(0.0, each)) for _, each in told]
    mean = fsum(w * value for w, (value, _) in zip(weights, told, strict=True)) / fsum(weights)
    return round(exp(mean), 4), round(known, 3)


def _mean_error(errors: Sequence[LatencyError]) -> LatencyError | None:
    if not errors:
        return None
    median, p90, p98 = (round(fmean(values), 3) for values in zip(*errors, strict=True))
    return median, p90, p98


def _failing(reports: Sequence[PoolStatus]) -> frozenset[str]:
    broken = [{v for v, s in r.variants.items() if s.circuit != "closed"} for r in reports]
    return frozenset(set.intersection(*broken)) if broken else frozenset()


def is_live(status: PoolStatus, now: float) -> bool:
    """Return True if a worker still reports."""
    silent_s = now - status.at
    is_heard = -AHEAD_S_MAX <= silent_s <= MISSED_BEATS_MAX * status.interval_s
    return is_heard and status.state != "down"


def live_view(options: Options, statuses: Iterable[PoolStatus]) -> FleetView:
    """Return a view of these heartbeats."""
    view = FleetView(options)
    for status in statuses:
        view.report(status)
    return view


def idle_reports(options: Options, now: float) -> list[PoolStatus]:
    """Return a heartbeat of one idle worker for each pool of a fleet."""
    return [
        PoolStatus(
            pool=pool,
            instance="assumed",
            at=now,
            state="up",
            interval_s=60.0,
            device=choices[0].device,
            region=choices[0].region,
            slots=sum(o.max_batch * o.replicas for o in choices),
            running=0,
            queued=0,
            backlog_s=0.0,
        )
        for pool, choices in options.by_pool.items()
    ]


def idle_view(options: Options, now: float) -> FleetView:
    """Return the view of a fleet whose pools are all live and idle."""
    return live_view(options, idle_reports(options, now))
