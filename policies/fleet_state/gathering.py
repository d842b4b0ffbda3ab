"""Pools that gather their work on few replicas: who shares a replica with whom.

`policies.hardware.replica` chooses the replica: the fullest on which every SLO holds. So at low
traffic all variants take turns on one replica, and as it grows each gets replicas of its own. How
the replicas are filled, no router knows; how many sequences of which variant run, it does.
"""

from typing import NamedTuple

from policies.config.options import Option
from policies.hardware.replica import OWN_REPLICA_SHARE


class Company(NamedTuple):
    """The others on a replica, as a request of one variant meets them.

    Attributes:
        joined: sequences of its variant on the fullest replica, if one took them all.
        mixed_s: one iteration of the other variants there, in seconds.
        others_share: of one iteration of all other variants that run, the part on its replica if
            each has as few replicas in common with others as can be.
    """

    joined: int
    mixed_s: float
    others_share: float


def gathers(option: Option) -> bool:
    """Return True if a pool has replicas to gather its work on."""
    return option.gathers and option.replicas > 1


def is_mixed(option: Option, sequences: int) -> bool:
    """Return True if so many sequences of a variant share a replica with other variants."""
    return 0 < sequences < OWN_REPLICA_SHARE * option.max_batch


def company(option: Option, sequences: int, own_s: float, told: tuple[float, int]) -> Company:
    """Return what a request would meet.

    Args:
        option: its variant.
        sequences: of the variant that run at one worker.
        own_s: their part of the iteration that is told of.
        told: one iteration of all variants that share replicas, and how many variants run.
    """
    mixed_s, variants = told
    others = variants - (sequences > 0)
    beside = max(0.0, (others + 1) / option.replicas - 1.0)
    if sequences and not is_mixed(option, sequences):
        mixed_s = own_s
    return Company(sequences, max(0.0, mixed_s - own_s), beside / others if others else 0.0)
