"""The replay: a trace through a policy and a modelled fleet, from event to event."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from typing import Any

from policies.backtest.fault_model import Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replica_pool import HEARTBEAT_S, Draw, ModelPool, Try, TryEnded
from policies.backtest.route import Route, Send, Unserved
from policies.config.options import Options
from policies.config.policy import Policy
from policies.placement.retry import allow_again
from topics import Fallback, Profile

# What happens at one instant happens in this order.
_REPLICA, _BEAT, _NOTICE, _FAULT, _ARRIVAL, _AGAIN, _RELEASE, _SUBMIT, _LOOK = range(9)


@dataclass(frozen=True, slots=True)
class ReplayRun:
    """Result of a policy on a trace.

    ``busy_s`` is by pool, as is ``tokens_usd``, what those got that are paid by tokens, and
    ``moving_usd``, what those got whose prices move; ``steps`` and ``tokens`` are decoded;
    ``migrations`` are replies that went on at another replica.
    """

    outcomes: list[ReplayOutcome]
    busy_s: dict[str, float]
    steps: int
    tokens: int
    batches: int
    batched: int
    tokens_usd: dict[str, float] = field(default_factory=dict)
    moving_usd: dict[str, float] = field(default_factory=dict)
    migrations: int = 0


class Replay:
    """One run. Virtual time jumps from event to event."""

    def __init__(
        self, route: Route, options: Options, policy: Policy, reality: Reality, draw: Draw
    ) -> None:
        self._route = route
        self._options = options
        self._policy = policy
        self._transport_s = policy.estimates.transport_s
        self._pools = {
            name: ModelPool(choices, reality, draw) for name, choices in options.by_pool.items()
        }
        self._reality = reality
        self._draw = draw
        self._events: list[tuple[float, int, int, Any]] = []
        self._order = count()
        self._due: dict[tuple[str, int], float] = {}
        self._release_at = math.inf
        self._looks: set[str] = set()
        self._stirred = dict.fromkeys(self._pools, 2)
        self._left = 0
        self._is_enough: Callable[[ReplayOutcome], bool] | None = None
        self._outcomes: dict[str, ReplayOutcome] = {}
        self._batch_ids: set[str] = set()
        self._batched = 0
        self._held_since: dict[str, float] = {}

    def run(
        self,
        profiles: Sequence[Profile],
        output_tokens: Sequence[int],
        prefix_tokens: Sequence[int] | None = None,
        is_enough: Callable[[ReplayOutcome], bool] | None = None,
    ) -> ReplayRun:
        """Replay the requests, sorted by ``created_at``, and return the outcome of each.

        Args:
            profiles: a router's knowledge of them.
            output_tokens: length of each reply, hidden from the policy.
            prefix_tokens: part of each prompt that its session had before, also hidden; None: none.
            is_enough: is told each request that has ended, and returns whether to stop there.
        """
        prefixes = prefix_tokens or [0] * len(profiles)
        for row, each in enumerate(zip(profiles, output_tokens, prefixes, strict=True)):
            profile, tokens, prefix = each
            self._outcomes[profile.id] = ReplayOutcome(
                row, profile, profile.input_tokens, tokens, prefix
            )
        self._left, self._is_enough = len(profiles), is_enough
        self._schedule_faults(profiles[-1].created_at)
        self._push(0.0, _BEAT, None)
        arrivals = iter(profiles)
        self._push_arrival(arrivals)
        handlers: dict[int, Callable[[Any, float], None]] = {
            _REPLICA: self._advance,
            _AGAIN: self._again,
            _SUBMIT: self._submit,
            _LOOK: self._look,
            _NOTICE: self._notice,
            _FAULT: self._fault,
        }
        while self._events and self._left > 0:
            at, kind, _, what = heappop(self._events)
            if kind == _ARRIVAL:
                self._push_arrival(arrivals)
                self._arrive(what, at)
            elif kind == _BEAT:
                self._beat(at)
            elif kind == _RELEASE:
                self._release(at)
            else:
                handlers[kind](what, at)
        return self._result()

    def _result(self) -> ReplayRun:
        decoded = [r.accelerator.decoded for p in self._pools.values() for r in p.replicas]
        return ReplayRun(
            outcomes=list(self._outcomes.values()),
            busy_s={name: pool.busy_s for name, pool in self._pools.items()},
            tokens_usd={n: pool.tokens_usd for n, pool in self._pools.items() if pool.tokens_usd},
            moving_usd={n: pool.moving_usd for n, pool in self._pools.items() if pool.moving_usd},
            steps=sum(steps for steps, _ in decoded),
            tokens=sum(tokens for _, tokens in decoded),
            batches=len(self._batch_ids),
            batched=self._batched,
            migrations=sum(pool.migrations for pool in self._pools.values()),
        )

    def _push(self, at: float, kind: int, what: Any) -> None:
        heappush(self._events, (at, kind, next(self._order), what))

    def _push_arrival(self, arrivals: Iterator[Profile]) -> None:
        profile = next(arrivals, None)
        if profile is not None:
            self._push(profile.created_at, _ARRIVAL, profile)

    def _arrive(self, profile: Profile, now: float) -> None:
        action = self._route.arrive(profile, now)
        if action is None:
            self._held_since[profile.id] = now
        else:
            self._take(action, now)
        self._plan_release(now)

    def _again(self, profile: Profile, now: float) -> None:
        self._arrive(allow_again(profile, self._options, self._policy), now)

    def _release(self, now: float) -> None:
        if now < self._release_at:  # an earlier one took its place
            return
        self._release_at = math.inf
        for action in self._route.release(now):
            request_id = action.profile.id
            outcome = self._outcomes[request_id]
            outcome.held_s = (outcome.held_s or 0.0) + now - self._held_since.pop(request_id)
            self._take(action, now)
        self._plan_release(now)

    def _plan_release(self, now: float) -> None:
        due_at = max(now, self._route.due_at())
        if due_at < self._release_at:
            self._release_at = due_at
            self._push(due_at, _RELEASE, None)

    def _take(self, action: Send | Unserved, now: float) -> None:
        outcome = self._outcomes[action.profile.id]
        outcome.profile = action.profile
        if isinstance(action, Unserved):
            failed = outcome.tries > 0 and not action.expired
            outcome.status = "expired" if action.expired else "failed" if failed else "rejected"
            outcome.reason = action.reason
            self._close(outcome)
            return
        outcome.sends.append(action)
        outcome.pool, outcome.path = action.option.pool, action.path
        outcome.variant, outcome.precision = action.option.variant, action.option.precision
        outcome.dispatched_s = now
        outcome.batch_id = action.batch_id
        if action.batch_id is not None:
            self._batch_ids.add(action.batch_id)
            self._batched += 1
        outcome.promised = action.promised
        attempt = Try(outcome, action.option, action.path, action.batch_id)
        self._stirred[action.option.pool] = 2
        latency_s = self._pools[action.option.pool].latency_s
        self._push(now + self._transport_s + latency_s, _SUBMIT, attempt)

    def _submit(self, attempt: Try, now: float) -> None:
        outcome, pool = attempt.outcome, self._pools[attempt.option.pool]
        self._stirred[pool.name] = 2
        if now >= outcome.profile.deadline:
            outcome.status, outcome.reason = "expired", "deadline_passed"
            self._close(outcome)
            return
        pool.submit(attempt, now)
        self._start(pool, now)

    def _start(self, pool: ModelPool, now: float) -> None:
        for ended in pool.failed():
            self._end(ended, now)
        for index in pool.migrate(now):
            self._watch(pool, index, now)
        for attempt, index in pool.start(now):
            attempt.outcome.device = index
            self._watch(pool, index, now)
        due_at = pool.look_at(now)
        if due_at is not None and pool.name not in self._looks:
            self._looks.add(pool.name)
            self._push(due_at, _LOOK, pool.name)

    def _look(self, name: str, now: float) -> None:
        self._looks.discard(name)
        self._start(self._pools[name], now)

    def _watch(self, pool: ModelPool, index: int, now: float) -> None:
        due_at = pool.due_at(index)
        key = (pool.name, index)
        if due_at is None:
            self._due.pop(key, None)
        else:
            due_at = max(due_at, now)
            if self._due.get(key) != due_at:
                self._due[key] = due_at
                self._push(due_at, _REPLICA, key)

    def _advance(self, key: tuple[str, int], now: float) -> None:
        if self._due.get(key) != now:  # the replica was given more since
            return
        del self._due[key]
        pool = self._pools[key[0]]
        self._stirred[pool.name] = 2
        for ended in pool.advance(key[1], now):
            self._end(ended, now)
        self._watch(pool, key[1], now)
        self._start(pool, now)

    def _end(self, ended: TryEnded, now: float) -> None:
        outcome = ended.attempt.outcome
        if ended.reason is None:
            outcome.status = "completed"
            self._close(outcome)
            return
        profile, pool = outcome.profile, outcome.pool
        if outcome.tries >= self._policy.attempts_max:
            outcome.status, outcome.reason = "failed", ended.reason
            self._close(outcome)
            return
        again = replace(
            profile,
            attempt=profile.attempt + 1,
            exclude_pools=(*profile.exclude_pools, pool),
            fallbacks=(*profile.fallbacks, Fallback(pool, ended.reason)),
            routed_at=now,
        )
        self._push(now + self._transport_s, _AGAIN, again)

    def _close(self, outcome: ReplayOutcome) -> None:
        """Count a request that has ended."""
        self._left -= 1
        self._route.settle(outcome.profile, outcome.used)
        if self._is_enough is not None and self._is_enough(outcome):
            self._left = 0

    def _beat(self, now: float) -> None:
        for name, pool in self._pools.items():
            # The heartbeats of an idle pool are all alike: the first two say so, of a week of them.
            if pool.is_idle and name not in self._stirred:
                continue
            self._stirred[name] = self._stirred.get(name, 2) - 1 if pool.is_idle else 2
            if not self._stirred[name]:
                del self._stirred[name]
            self._route.hear(pool.status(now), now)
        self._push(now + HEARTBEAT_S, _BEAT, None)

    def _schedule_faults(self, last_s: float) -> None:
        for outage in self._reality.outages:
            if outage.notice_s:
                noticed_s = max(0.0, outage.from_s - outage.notice_s)
                self._push(noticed_s, _NOTICE, outage.pool)
            self._push(outage.from_s, _FAULT, (outage.pool, None, True))
            self._push(outage.to_s, _FAULT, (outage.pool, None, False))
        for name, per_hour in self._reality.preemptions_per_hour.items():
            for index in range(len(self._pools[name].replicas)):
                at = 0.0
                while per_hour:
                    at -= math.log(1.0 - self._draw()) * 3600.0 / per_hour
                    if at > last_s:
                        break
                    self._push(at, _FAULT, (name, index, True))

    def _notice(self, name: str, now: float) -> None:
        """Let a pool drain, and say so at once."""
        pool = self._pools[name]
        pool.is_draining = True
        self._route.hear(pool.status(now), now)
        self._plan_release(now)

    def _fault(self, fault: tuple[str, int | None, bool], now: float) -> None:
        name, only, is_down = fault
        pool = self._pools[name]
        self._stirred[name] = 2
        if only is None:
            pool.is_down, pool.is_draining = is_down, False
        if is_down:
            if only is None:
                pool.fail_line(now)
            for index in range(len(pool.replicas)) if only is None else (only,):
                pool.lose(index, now)
                self._watch(pool, index, now)
            self._start(pool, now)
