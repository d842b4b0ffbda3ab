"""A call at the simulated devices, from when it comes until it ends."""

from dataclasses import dataclass, field

from policies.hardware.accelerator import Job
from policies.hardware.answering import AnsweringReplica
from policies.hardware.device_time import DeviceShare
from topics import Profile
from workers.backends.base import Call


@dataclass(eq=False, slots=True)
class SimulatedRun:
    """A call at the pool since ``came_at``; what has no default is set when it begins.

    Input tokens are those of all its prompts, output tokens those of one reply; ``share_s`` is its
    share of the replicas that it has left.
    """

    name: str
    call: Call
    input_tokens: int
    output_tokens: int
    came_at: float
    has_begun: bool = False
    began_at: float = 0.0
    ahead_s: float = 0.0
    others_s: float = 0.0
    share_s: float = 0.0
    replica: AnsweringReplica = field(init=False)
    share: DeviceShare = field(init=False)
    mark: float = field(init=False)
    job: Job = field(init=False)

    def enter(self, replica: AnsweringReplica, share: DeviceShare, now: float) -> None:
        """Count it on a replica from now on, the first one or one on which it goes on."""
        answers = self.call.profile.answers
        if self.has_begun:
            self.share_s += self.share.end(self.mark, now, answers)
        self.replica, self.share = replica, share
        self.mark = share.begin(now, answers)

    def leave(self, now: float) -> float:
        """Count it nowhere from now on, and return its share of all of its replicas."""
        return self.share_s + self.share.end(self.mark, now, self.call.profile.answers)


def session_of(profile: Profile) -> str | None:
    """Return the session of a request; two tenants may use one name, and share nothing."""
    return None if profile.session is None else f"{profile.tenant}/{profile.session}"
