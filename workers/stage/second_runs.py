"""Second runs: requests that the quality watch runs again, and the comparison of both answers.

The worker of the first answer asks for the second run, in the transaction of the result; what is
compared of the answer goes along in a header. The worker of the second run has both, compares them,
and tells a number. So no answer is kept for it anywhere else.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from policies import Option
from policies.quality.comparison import JUDGE, Excerpt, answer_group, difference, excerpt
from policies.quality.sampling import second_run
from streams.engine.log import Outgoing
from streams.evidence.records import EvidenceWriter
from streams.tracing.telemetry import Telemetry
from topics import Comparison, InferenceRequest, Profile, QualityCheck, encode
from topics.records import headers as h
from topics.records.quality import Asked
from workers.backends.base import Outcome
from workers.stage.replies import replies_in, reply_tokens
from workers.stage.routed_request import RoutedRequest

# Longer answers are not compared: they travel in a header.
EXCERPT_BYTES_MAX = 256 * 1024
# A judge that takes longer has no opinion.
JUDGE_S_MAX = 30.0

Judge = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], float]
"""Returns how much two answers differ, 0 to 1, given the request's body and what is compared of
each, the judged one first."""

logger = logging.getLogger(__name__)


class SecondRuns:
    """Asks for second runs, and compares their answers."""

    def __init__(
        self,
        evidence_writer: EvidenceWriter,
        telemetry: Telemetry,
        judges: Mapping[str, Judge] | None = None,
    ) -> None:
        self._catalogue = evidence_writer.catalogue
        self._telemetry = telemetry
        self._judges = judges or {}

    async def compared(
        self, routed: RoutedRequest, outcome: Outcome, option: Option
    ) -> Comparison | None:
        """Return how a second run's answer differs from the first; None if it is no second run."""
        check, profile = routed.profile.quality, routed.profile
        if check is None or check.of is None or check.pool is None or check.variant is None:
            return None
        answers = [_carried(routed), excerpt(outcome.response.body)]
        if check.asked == "reference":
            judged, reference = answers
        else:
            reference, judged = answers
        found = group = None
        if judged is not None and reference is not None:
            found = await self._difference(check, routed, judged, reference)
            group = answer_group(check.compare, check.task, reference)
        return Comparison(
            id=profile.id,
            of=check.of,
            at=outcome.finished_at,
            task=check.task,
            pool=check.pool,
            variant=check.variant,
            reference=check.reference,
            reference_pool=check.reference_pool,
            compare=check.compare,
            within=check.within,
            difference=found,
            cost_usd=option.cost_usd(
                outcome.device_s,
                outcome.usage.input_tokens,
                outcome.usage.output_tokens,
                outcome.usage.cached_tokens,
            ),
            answer_group=group,
        )

    def told(self, comparison: Comparison) -> Outgoing:
        """Return a comparison as a record."""
        key = f"{comparison.pool}/{comparison.variant}".encode()
        topic = self._catalogue.comparisons
        return Outgoing(topic, key, encode(comparison), payload=comparison, partition=0)

    def asked_for(self, routed: RoutedRequest, outcome: Outcome) -> list[Outgoing]:
        """Return the second runs that follow from an answer: one at most."""
        profile, place = routed.profile, routed.placement
        check = profile.quality
        if check is None or check.asked == "judged":
            return []
        is_reference = check.is_reference(place.pool, place.model_variant)
        if not is_reference and check.of is None:
            judged = replace(check, pool=place.pool, variant=place.model_variant)
            return self._ask(routed, outcome, judged, "reference")
        if not is_reference or check.probe is None:
            return []
        pool, variant = check.probe
        if (pool, variant) == (check.pool, check.variant):
            return []
        return self._ask(routed, outcome, replace(check, pool=pool, variant=variant), "judged")

    def _ask(
        self, routed: RoutedRequest, outcome: Outcome, check: QualityCheck, asked: Asked
    ) -> list[Outgoing]:
        answer = _packed(excerpt(outcome.response.body))
        if answer is None:
            return []
        profile = _as_answered(routed.profile, routed.request, outcome)
        again = second_run(profile, check, asked, outcome.finished_at)
        record = routed.record
        added = {h.PROFILE: encode(again), h.ANSWER: answer, h.CRITICAL: h.QUALITY_FIELD}
        added |= self._telemetry.sent(record, late_at=outcome.finished_at)
        is_traced = record.context is not None
        return [
            Outgoing(
                self._catalogue.reroutes,
                again.id.encode(),
                record.value,
                h.replaced(h.client_headers(record.headers, is_traced=is_traced), added),
                partition=again.ingest_partition % self._catalogue.partitions,
            )
        ]

    async def _difference(
        self, check: QualityCheck, routed: RoutedRequest, judged: Excerpt, reference: Excerpt
    ) -> float | None:
        if not check.compare.startswith(JUDGE):
            return difference(check.compare, judged, reference)
        judge = self._judges.get(check.compare.removeprefix(JUDGE))
        if judge is None:
            logger.warning("%s is not installed here; nothing is compared", check.compare)
            return None
        try:
            async with asyncio.timeout(JUDGE_S_MAX):
                found = await asyncio.to_thread(judge, routed.request.body, judged, reference)
            return float(found) if 0.0 <= float(found) <= 1.0 else None
        except Exception as error:  # noqa: BLE001 - whatever an extension raises
            # Not its text, which may hold text of an answer.
            logger.warning("%s gives no figure: %s", check.compare, type(error).__name__)
            return None


def _as_answered(profile: Profile, request: InferenceRequest, outcome: Outcome) -> Profile:
    """Return the profile with the reply's real length, which another one's is likely to have."""
    replies = replies_in(outcome.response, request, profile)
    each_tokens = reply_tokens(profile, outcome.usage, replies)
    tokens = max(1, each_tokens) if profile.output_tokens else 0
    return replace(profile, output_tokens=tokens)


def _packed(answer: Excerpt | None) -> bytes | None:
    if answer is None:
        return None
    packed = orjson.dumps(answer)
    return packed if len(packed) <= EXCERPT_BYTES_MAX else None


def _carried(routed: RoutedRequest) -> Excerpt | None:
    value = h.find(routed.record.headers, h.ANSWER)
    try:
        found = orjson.loads(value or b"null")
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
