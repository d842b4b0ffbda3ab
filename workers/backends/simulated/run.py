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

    Input tokens are those of all its prompts, output tokens those of one reply.
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
    replica: AnsweringReplica = field(init=False)
    share: DeviceShare = field(init=False)
    mark: float = field(init=False)
    job: Job = field(init=False)


def session_of(profile: Profile) -> str | None:
    """Return the session of a request; two tenants may use one name, and share nothing."""
    return None if profile.session is None else f"{profile.tenant}/{profile.session}"
