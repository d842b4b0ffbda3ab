"""Learning: a worker's experience from its committed work."""

from collections.abc import Sequence

from policies.learning.feedback import Experience
from policies.placement.retry import MAY_PASS
from streams.engine.log import Partition
from streams.engine.stage import Effect
from topics import Evidence, Response, Result
from workers.stage.outcomes import Task
from workers.stage.replies import replies_in

# What an open circuit sends elsewhere was not tried here.
FAULTS = MAY_PASS - {"circuit_open"}


class Learning:
    """Passes each committed execution to the experience once; an observer of transactors."""

    def __init__(self, experience: Experience) -> None:
        self._experience = experience

    def __call__(self, partition: Partition, effects: Sequence[Effect]) -> None:
        """Record the effects of a committed transaction."""
        for effect in effects:
            if isinstance(effect.subject, Task):
                written = [record.payload for record in effect.records]
                results = (each for each in written if isinstance(each, Result))
                response = next((result.response for result in results), None)
                for each in written:
                    if isinstance(each, Evidence):
                        self._learn(effect.subject, each, response)

    def _learn(self, task: Task, evidence: Evidence, response: Response | None) -> None:
        if evidence.step == "executed" and evidence.usage is not None:
            routed, profile = task.routed, task.routed.profile
            replies = replies_in(response, routed.request, profile)
            self._experience.completed(profile, routed.variant, evidence.usage, replies)
            promised, got = evidence.promised, evidence.got
            if promised is None or got is None or not routed.is_direct:
                return
            elapsed_s = routed.sent_at - profile.created_at
            self._experience.kept(profile, routed.variant, promised, got, elapsed_s)
        elif evidence.step in ("fell_back", "failed") and evidence.reason in FAULTS:
            self._experience.failed()
