"""The requests of lines, and the lines of their results."""

from typing import Any

import orjson

from gateway.api.answers import disclosed
from gateway.api.refusals import refusal_of
from gateway.api.responses_output import body_in_form
from gateway.batches.lines import BatchLine, CheckedInput, LineProblem
from gateway.batches.output import line_id, unanswered
from gateway.batches.record import BatchRecord, LineError
from gateway.exchange.fleet_state import FleetState
from gateway.http.errors import ApiError
from gateway.http.keys import KeyProofs
from policies.config.budgets import Counted, most_requests
from topics import Result, duration_s, encode
from topics.openai_api.batch_output import NEVER_ENDED

_BAD_REQUEST = 400


class LineTexts:
    """Writes requests and output lines in the form that the single endpoints have.

    Args:
        fleet: tells what limits a refusal names.
        proofs: of the key that a batch was created with.
    """

    def __init__(self, fleet: FleetState, proofs: KeyProofs) -> None:
        self._fleet = fleet
        self._proofs = proofs

    def default_model(self, endpoint: str) -> str | None:
        """Return the model of lines that name none, as those of moderations may; else None."""
        return self._fleet.default_model(endpoint)

    def headers(self, batch: BatchRecord, request_id: str) -> list[tuple[str, bytes]]:
        """Return the headers of a line's request."""
        return self._proofs.headers(batch.key_id, request_id, batch.tenant)

    def rate_wait_s(self, tenant: str) -> float:
        """Return after how many seconds the tenant's rate takes one more request."""
        return self._fleet.rate_wait_s(tenant)

    def beyond_budget(
        self, batch: BatchRecord, checked: CheckedInput, now: float
    ) -> LineError | None:
        """Return why a batch has more lines than budgets accept before it expires, if it has.

        Each line that runs is one request in one window of each budget in requests, so this is
        known before any runs, of the tenant and its key, and of the classes that lines name; what
        lines use of other units, and of which class others are, is known when they run.
        """
        key_id = self._proofs.proven(batch.key_id)
        counts = [((), len(checked.offsets)), *(((t,), n) for t, n in checked.tasks.items())]
        for classes, lines in counts:
            counted = self._fleet.policy.budgets_of(batch.tenant, key_id, classes)
            bound = most_requests(counted, now, batch.expires_at)
            if bound is not None and lines > bound[0]:
                return _beyond(lines, classes, *bound)
        return None

    def value(self, line: BatchLine, request_id: str, expires_at: float, now: float) -> bytes:
        """Return the record of a line's request; its deadline is the batch's, or its own before.

        Raises:
            LineProblem: it nests too deep for what is added around it.
        """
        fields = dict(line.wanted.fields)
        window = fields.pop("completion_window", None)
        own = fields.get("deadline") if window is None else now + duration_s(window)
        fields["deadline"] = expires_at if own is None else min(own, expires_at)
        try:
            return encode({"id": request_id} | fields)
        except orjson.JSONEncodeError as error:
            raise LineProblem("invalid_json_line", "the body nests too deep", "body") from error

    def line(
        self, line: BatchLine, n: int, prefix: str, result: Result
    ) -> tuple[dict[str, Any], bool]:
        """Return the output line of a result, and whether it belongs in the error file."""
        told: dict[str, Any] = orjson.loads(encode(disclosed(result)))
        if (code := NEVER_ENDED.get(result.status)) is not None:
            return unanswered(prefix, n, line.custom_id, code) | {"shunter": told}, True
        if result.status == "completed" and result.response is not None:
            status, body = result.response.status_code, body_in_form(result, line.wanted)
        else:
            refusal = refusal_of(result, line.wanted, self._fleet)
            status, body = refusal.status, refusal.body()
        said = _line(prefix, n, line.custom_id, result.id, status, body)
        return said | {"shunter": told}, result.status != "completed"

    def refused(self, prefix: str, n: int, request_id: str, problem: LineProblem) -> dict[str, Any]:
        """Return the output line of one that can't be run any more."""
        error = ApiError(_BAD_REQUEST, problem.code, problem.message, param=problem.param)
        return _line(prefix, n, str(n), request_id, error.status, error.body())


def _line(
    prefix: str, n: int, custom_id: str, request_id: str, status: int, body: Any
) -> dict[str, Any]:
    return {
        "id": line_id(prefix, n),
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": request_id, "body": body},
        "error": None,
    }


def _beyond(lines: int, classes: tuple[str, ...], most: int, counted: Counted) -> LineError:
    """Return the error of a batch with more lines, of some classes, than a budget accepts."""
    rule, _, budget = counted
    of_class = "".join(f" of class {task}" for task in classes)
    message = (
        f"the batch has {lines:,} lines{of_class}; the budget of {rule}, {budget.requests:,}"
        f" requests in {budget.window_s:g} s, accepts at most {most:,} before the batch expires;"
        " split it, or give it a longer completion_window"
    )
    return LineError("insufficient_quota", message)
