"""The driver of a batch: from what is written down it goes on, whoever had it before."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.batches.exchange import LineExchange
from gateway.batches.finalization import Ending
from gateway.batches.journal import Run
from gateway.batches.lines import (
    LINES_A_TURN,
    CheckedInput,
    Input,
    LineProblem,
    batch_prefix,
    line_request_id,
    run_of_id,
)
from gateway.batches.output import unanswered
from gateway.batches.publishing_rate import LinePace
from gateway.batches.record import FINAL, BatchRecord
from gateway.batches.store import BatchFolder, BatchLog
from gateway.batches.texts import LineTexts
from gateway.batches.turned_away import TurnedAway, away_s
from gateway.exchange.request_ids import owned_id
from gateway.files.store import FileStore
from gateway.files.threads import in_thread
from streams.engine.clock import Clock
from streams.engine.trace_context import Context
from topics import BadRecordError, Result, decode
from topics.openai_api.batch_output import CANCELLED, EXPIRED
from topics.records.headers import TRACEPARENT

# Lines published and not ended, of one batch; enough for the windows of the hold to fill.
IN_FLIGHT_MAX = 10_000
# Published at once, of one batch; the log is written once for them.
CHUNK_LINES = 200
# How long the results of lines are awaited that were cancelled, or whose deadline has passed.
ENDING_S_MAX = 30.0
WAIT_S = 0.2

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Parts:
    """Parts that drivers of one process share. ``request_bytes_max`` is that of a line."""

    files: FileStore
    exchange: LineExchange
    texts: LineTexts
    clock: Clock
    request_bytes_max: int
    ending_s_max: float = ENDING_S_MAX
    wait_s: float = WAIT_S
    in_flight_max: int = IN_FLIGHT_MAX
    chunk_lines: int = CHUNK_LINES


@dataclass(slots=True)
class _Work:
    """Open parts of a batch in progress."""

    log: BatchLog
    in_flight: set[Run] = field(default_factory=set)
    """Published, as far as it is known, without an end."""
    to_publish: set[Run] = field(default_factory=set)
    """Announced in the log, and not on Kafka."""
    arrived: list[tuple[str, bytes]] = field(default_factory=list)
    away: TurnedAway = field(default_factory=TurnedAway)


class Driver:
    """Takes one batch, which this process owns, to its end.

    It may be killed at any moment and another goes on: a line is announced in its log before
    it is published, its end is there before the log says that results are read so far, and of what
    was announced Kafka tells whether it has it.
    """

    def __init__(self, folder: BatchFolder, batch: BatchRecord, parts: Parts) -> None:
        self._folder = folder
        self._parts = parts
        self._batch = batch
        self._prefix = batch_prefix(batch.id)
        self._ids_prefix = owned_id(batch.tenant, self._prefix)
        self._woken = asyncio.Event()
        self._told_at = 0.0
        self._pace = LinePace()
        self._cause = _span_of(batch)

    async def run(self) -> None:
        """Drive the batch to its end.

        Raises:
            UnavailableError: Kafka does not answer; what is written down is gone on with later.
            OSError: the disk or the store fails, or another gateway owns the batch; likewise.
        """
        batch = self._batch
        if batch.status not in FINAL:
            source = Input(
                await in_thread(self._folder.open_input),
                batch.endpoint,
                batch.tenant,
                self._parts.request_bytes_max,
                self._parts.texts.default_model(batch.endpoint),
            )
            try:
                await self._run(source)
            finally:
                source.close()
        await in_thread(self._folder.close)

    async def _run(self, source: Input) -> None:
        batch = self._batch
        if batch.status == "validating" and not await self._validated(source):
            return
        if not source.offsets:
            await in_thread(source.index)
        log = await in_thread(self._folder.open_log, batch.counts.total)
        try:
            if batch.status != "finalizing":
                await self._work(source, _Work(log))
            await Ending(self._folder, batch, log, self._parts.files).finish(self._now())
        finally:
            log.close()

    async def _validated(self, source: Input) -> bool:
        """Check the input; return whether the lines are to run."""
        batch, checked = self._batch, CheckedInput()
        for found in source.check(self._now()):
            checked = found
            await asyncio.sleep(0)
            if self._folder.seen_cancelling_at() is not None:
                break
        errors = checked.errors
        if not errors and (beyond := self._parts.texts.beyond_budget(batch, checked, self._now())):
            errors = [beyond]
        if self._folder.seen_cancelling_at() is not None or errors:
            batch.errors = errors
            await in_thread(self._folder.settle, batch, "failed", self._now())
            if batch.status == "cancelling":
                batch.errors = []
                batch.enter("cancelled", self._now())
        else:
            batch.counts.total, batch.model = len(checked.offsets), checked.model
            source.offsets = checked.offsets
            batch.enter("in_progress", self._now())
        await in_thread(self._folder.write, batch)
        return batch.status == "in_progress"

    async def _work(self, source: Input, work: _Work) -> None:
        """Publish lines and write down their ends until each has one."""
        exchange, log = self._parts.exchange, work.log

        def take(request_id: str, value: bytes) -> None:
            work.arrived.append((request_id, value))
            self._woken.set()

        async with exchange.following(self._ids_prefix, take):
            await self._settle(work)
            self._recover(work)
            if log.state.positions:
                # Written down as they come: of a batch that nobody had for long there are many.
                async def write_down(request_id: str, value: bytes) -> None:
                    self._write_end(source, work, request_id, value)
                    await self._flush_full(log)

                await exchange.catch_up(log.state.positions, self._ids_prefix, write_down)
            else:
                # Before the first line is published, so that no result stands before it.
                ends = await exchange.ends()
                await in_thread(log.read_to, ends, ())
            while log.done_count < self._batch.counts.total:
                self._woken.clear()
                await self._write_down(source, work)
                if self._is_ending():
                    await self._end_lines(source, work)
                    return
                is_waiting = not await self._publish_some(source, work)
                await self._tell(source, work)
                if is_waiting and not work.arrived:
                    await self._wait()

    def _recover(self, work: _Work) -> None:
        """Take up what the log says was published, and has no end yet."""
        state = work.log.state
        current = ((n, state.runs.get(n, 0)) for n in range(state.next_line))
        away = state.uncertain | {(n, state.runs.get(n, 0)) for n in state.again}
        work.in_flight = {
            run for run in current if not work.log.is_done(run[0]) and run not in away
        }
        for n in state.again:
            if not work.log.is_done(n):
                work.away.add(n, "", self._now())

    async def _settle(self, work: _Work) -> None:
        """Ask Kafka which of the uncertain lines it has; the others are published now."""
        state = work.log.state
        if not state.uncertain:
            return
        by_id = {self._id(run): run for run in state.uncertain}
        found = await self._parts.exchange.published(by_id.keys(), state.uncertain_since or 0.0)
        there = [by_id[each] for each in found]
        await in_thread(work.log.published, there)
        work.to_publish = set(state.uncertain)

    async def _write_down(self, source: Input, work: _Work) -> None:
        """Write down the ends that have arrived."""
        arrived, work.arrived = work.arrived, []
        for done, (request_id, value) in enumerate(arrived):
            try:
                self._write_end(source, work, request_id, value)
            except OSError:
                work.arrived = arrived[done:] + work.arrived
                raise
            await self._flush_full(work.log)
            await _take_turns(done)

    async def _flush_full(self, log: BatchLog) -> None:
        if log.is_full:
            await in_thread(log.flush)

    def _write_end(self, source: Input, work: _Work, request_id: str, value: bytes) -> None:
        n, run = run_of_id(request_id)
        state, output = work.log.state, work.log
        is_current = n < len(source.offsets) and run == state.runs.get(n, 0)
        if not is_current or output.is_done(n):
            return
        try:
            result = decode(Result, value)
        except BadRecordError as error:
            logger.warning("the result of %s can't be read: %s", request_id, error.message)
            return
        now = self._now()
        wait_s = away_s(result, now, lambda: self._parts.texts.rate_wait_s(self._batch.tenant))
        if wait_s is not None and result.error is not None:
            work.away.add(n, result.error.code, self._pace.turned_away(now, wait_s))
        else:
            asked = source.line(n, now)
            line, is_error = self._parts.texts.line(asked, n, self._prefix, result)
            output.add(n, line, is_error=is_error)
        work.in_flight.discard((n, run))

    async def _publish_some(self, source: Input, work: _Work) -> bool:
        """Publish the next lines, if there is room for any; return whether some were."""
        now, state = self._now(), work.log.state
        room = self._parts.in_flight_max - len(work.in_flight)
        room = min(room, self._parts.chunk_lines, self._pace.room(now))
        if room <= 0:
            return False
        # Of some the end has been read meanwhile.
        work.to_publish = {run for run in work.to_publish if not work.log.is_done(run[0])}
        runs = sorted(work.to_publish)[:room]
        again = work.away.due(now, room - len(runs))
        fresh = [(n, state.runs.get(n, 0) + 1) for n in again]
        last = min(self._batch.counts.total, state.next_line + room - len(runs) - len(fresh))
        fresh += [(n, 0) for n in range(state.next_line, last)]
        if not runs and not fresh:
            return False
        if fresh:
            await in_thread(work.log.intend, fresh, now)
        work.to_publish.update(fresh)
        work.away.gone(again)
        await self._publish(source, work, [*runs, *fresh])
        return True

    async def _publish(self, source: Input, work: _Work, runs: list[Run]) -> None:
        values: dict[Run, bytes] = {}
        for done, run in enumerate(runs):
            await _take_turns(done)
            request_id, now, expires_at = self._id(run), self._now(), self._batch.expires_at
            try:
                line = source.line(run[0], now)
                values[run] = self._parts.texts.value(line, request_id, expires_at, now)
            except LineProblem as problem:
                # It was fit when it was checked, for a longer limit.
                refused = self._parts.texts.refused(self._prefix, run[0], request_id, problem)
                work.log.add(run[0], refused, is_error=True)
        self._folder.check_owned()
        # In flight first: a result may be there before the acknowledgement.
        work.in_flight.update(values)
        # All of them, so that none is still on its way when Kafka is asked for it.
        sent = await asyncio.gather(
            *(self._send(self._id(run), value) for run, value in values.items()),
            return_exceptions=True,
        )
        for outcome in sent:
            if isinstance(outcome, BaseException):
                raise outcome
        self._pace.published(len(runs))
        await in_thread(work.log.published, runs)
        work.to_publish.difference_update(runs)

    async def _send(self, request_id: str, value: bytes) -> None:
        headers = self._parts.texts.headers(self._batch, request_id)
        await self._parts.exchange.publish(request_id, value, headers, self._cause)

    def _is_ending(self) -> bool:
        return (
            self._folder.seen_cancelling_at() is not None or self._now() >= self._batch.expires_at
        )

    async def _end_lines(self, source: Input, work: _Work) -> None:
        """End the lines of a batch that is cancelled or has expired: none is published any more."""
        cancelling_at = self._folder.seen_cancelling_at()
        code = EXPIRED if cancelling_at is None else CANCELLED
        if cancelling_at is not None and self._batch.status != "cancelling":
            self._batch.enter("cancelling", cancelling_at)
            await in_thread(self._folder.write, self._batch)
        # Lines whose deadline has passed end by themselves; a cancellation must be sent.
        if code == CANCELLED:
            await self._cancel(work.in_flight | work.to_publish)
        await self._await_ends(source, work, code)
        if code == EXPIRED:
            await self._cancel(work.in_flight | work.to_publish)
        for n in range(self._batch.counts.total):
            if not work.log.is_done(n):
                custom_id = self._custom_id(source, n)
                line = unanswered(self._prefix, n, custom_id, code, work.away.code(n))
                work.log.add(n, line, is_error=True)
                await self._flush_full(work.log)
            await _take_turns(n)

    async def _await_ends(self, source: Input, work: _Work, code: str) -> None:
        until = self._now() + self._parts.ending_s_max
        while work.in_flight and self._now() < until:
            self._woken.clear()
            await self._write_down(source, work)
            await self._tell(source, work)
            if code == EXPIRED and self._folder.seen_cancelling_at() is not None:
                return
            if work.in_flight and not work.arrived:
                await self._wait()

    async def _cancel(self, runs: Iterable[Run]) -> None:
        waiting = sorted(runs)
        step = self._parts.chunk_lines
        for start in range(0, len(waiting), step):
            chunk = waiting[start : start + step]
            await asyncio.gather(*(self._parts.exchange.cancel(self._id(run)) for run in chunk))

    async def _tell(self, source: Input, work: _Work) -> None:
        """Record now and then how far the batch is: for clients, and for a new owner."""
        now = self._now()
        every_s = work.log.told_every_s(now - self._batch.created_at)
        if 0 <= now - self._told_at < every_s:
            return
        self._folder.check_owned()
        self._told_at = now
        # What has arrived up to these is written down first; what arrives meanwhile is behind them.
        positions = self._parts.exchange.positions()
        await self._write_down(source, work)
        self._batch.counts, self._batch.turned_away = work.log.counts, work.away.told()
        await in_thread(work.log.read_to, positions, work.away.lines())
        await in_thread(self._folder.write, self._batch)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._parts.wait_s):
                await self._woken.wait()
        except TimeoutError:
            return

    def _custom_id(self, source: Input, n: int) -> str:
        try:
            return source.line(n, self._now()).custom_id
        except LineProblem:
            return str(n)

    def _id(self, run: Run) -> str:
        return line_request_id(self._batch.tenant, self._batch.id, *run)

    def _now(self) -> float:
        return self._parts.clock.now()


async def _take_turns(done: int) -> None:
    """Let the other requests of the process go on now and then."""
    if done % LINES_A_TURN == 0:
        await asyncio.sleep(0)


def _span_of(batch: BatchRecord) -> Context | None:
    """Return the span that created a batch; None if none is known."""
    told = batch.traceparent
    return None if told is None else Context.of([(TRACEPARENT, told.encode())])
