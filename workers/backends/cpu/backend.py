"""The CPU backend: embeddings and moderations by small models inside the worker."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from policies import Option
from policies.config.fleet import CPUBackendConfig as Declared
from policies.hardware.accelerator import Job
from policies.learning.device_constants import Measured
from policies.learning.device_speed import Pace
from streams.engine.clock import Clock
from topics import Response, Usage, VariantStatus
from topics.openai_api.failures import error_body
from workers.backends.base import INPUTS_MAX, Call, CallError, Load, Outcome
from workers.backends.cpu.models import Embedder, TooLongError
from workers.backends.cpu.moderation import Moderator
from workers.backends.error_log import ErrorLog

ENCODINGS = ("float", "base64")


class CPUBackend:
    """Computes each request in a thread; libraries release the interpreter lock meanwhile.

    Raises:
        BackendSettingError: the extra ``cpu`` is not installed, or a file can't be read.
    """

    def __init__(self, declared: Declared, options: Sequence[Option], clock: Clock) -> None:
        self._options = {option.variant: option for option in options}
        self._clock = clock
        operations = frozenset[str]().union(*(option.operations for option in options))
        where = f"pools.{options[0].pool}.backend"
        embedding = [o.context_tokens for o in options if "embeddings" in o.operations]
        self._embedder = Embedder(declared, where, min(embedding)) if embedding else None
        # The heads of the moderator are of the packaged model's vectors.
        shared = self._embedder if declared.model_file is None else None
        self._moderator = Moderator(where, shared) if "moderations" in operations else None
        self._threads = ThreadPoolExecutor(declared.threads, thread_name_prefix="cpu-backend")
        self._running = dict.fromkeys(self._options, 0)
        self._pace = Pace()
        self._error_log = ErrorLog(options[0].pool)

    async def start(self) -> None:
        """Do nothing: models are loaded when the backend is created."""

    async def stop(self) -> None:
        """Let the threads finish their work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def probe(self, variant: str) -> None:
        """Return at once: loaded models stay loaded."""

    async def execute(self, call: Call) -> Outcome:
        """Compute one request. Raises CallError."""
        variant = call.placement.model_variant
        texts = _texts(call.request.body.get("input"))
        answers = call.profile.answers
        self._running[variant] += answers
        started_at = self._clock.now()
        # When a thread took it, which is the time that it is charged from.
        began: list[float] = []
        try:
            loop = asyncio.get_running_loop()
            body, tokens, device_s = await loop.run_in_executor(
                self._threads, self._try_to_compute, call, texts, began
            )
        except BaseException:
            if began:
                call.meter.add(max(0.0, self._clock.now() - began[0]))
            raise
        finally:
            self._running[variant] -= answers
        option = self._options[variant]
        took = Measured(None, device_s)
        self._pace.learn(option, Job("", variant, max(1, tokens), 0), took, device_s)
        usage = Usage(tokens, 0)
        answer = Response(200, body | {"model": variant})
        return Outcome(answer, usage, started_at, None, self._clock.now(), device_s)

    def load(self) -> Load:
        """Return the load: answers that are computed or wait for a thread."""
        variants = {
            variant: VariantStatus(
                running=running,
                speed=self._pace.speed(variant),
                speed_known=self._pace.known(variant),
            )
            for variant, running in self._running.items()
        }
        factors, known = self._pace.factors, self._pace.factors_known
        idle = 0 if any(self._running.values()) else 1
        return Load(0.0, variants, None, factors, known, idle)

    def _try_to_compute(
        self, call: Call, texts: list[str], began: list[float]
    ) -> tuple[dict[str, Any], int, float]:
        """Run ``_compute``; any other error of the libraries fails only this call."""
        began.append(self._clock.now())
        try:
            return self._compute(call, texts)
        except CallError:
            raise
        # A panic of compiled code is no Exception.
        except BaseException as error:
            self._error_log.tell(error)
            message = f"the model raised {type(error).__name__}"
            raise CallError(
                "server_error", message, retry="elsewhere", is_pool_fault=True
            ) from error

    def _compute(self, call: Call, texts: list[str]) -> tuple[dict[str, Any], int, float]:
        """Return body, tokens read, and the computing time without the wait for a thread."""
        began_at = self._clock.now()
        operation = call.profile.operation
        if operation == "embeddings" and self._embedder is not None:
            encoding = _encoding(call.request.body)
            try:
                rows, tokens = self._embedder.embed(texts, is_base64=encoding == "base64")
            except TooLongError as error:
                raise CallError("context_too_long", str(error), retry="elsewhere") from error
            data = [
                {"object": "embedding", "index": index, "embedding": row}
                for index, row in enumerate(rows)
            ]
            usage = {"prompt_tokens": tokens, "total_tokens": tokens}
            body: dict[str, Any] = {"object": "list", "data": data, "usage": usage}
        elif operation == "moderations" and self._moderator is not None:
            results, tokens = self._moderator.judge(texts)
            body = {"id": f"modr-{call.profile.id}", "results": results}
        else:
            message = f"a CPU pool has no {operation!r}"
            raise CallError("operation_not_served", message, retry="elsewhere")
        return body, tokens, max(0.0, self._clock.now() - began_at)


def _texts(found: Any) -> list[str]:
    """Return the texts of an input. Raises CallError."""
    texts = [found] if isinstance(found, str) else found
    if isinstance(texts, list):
        texts = [t.get("text") if isinstance(t, dict) else t for t in texts]
        if 0 < len(texts) <= INPUTS_MAX and all(isinstance(t, str) and t for t in texts):
            return texts
    message = f"body.input must be a text, or a list of 1 to {INPUTS_MAX} texts, none empty"
    raise _refused("input", message)


def _encoding(body: dict[str, Any]) -> str:
    encoding = body.get("encoding_format", "float")
    if encoding not in ENCODINGS:
        raise _refused("encoding_format", "body.encoding_format must be float or base64")
    if body.get("dimensions") is not None:
        raise _refused("dimensions", "body.dimensions is not served")
    return str(encoding)


def _refused(name: str, message: str) -> CallError:
    """Return the error for a field of the body, with what a server would answer to it."""
    body = error_body(HTTPStatus.BAD_REQUEST, "invalid_value", message)
    body["error"]["param"] = name
    answer = Response(HTTPStatus.BAD_REQUEST, body)
    return CallError("request_refused", message, retry="never", response=answer)
