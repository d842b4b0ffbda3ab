"""Readiness of a process: whether it can do work, and why not."""

from streams.kafka.broker_loss import silent_s
from streams.kafka.cluster_identity import other_cluster

# Brokers that are restarted in turn, and a new leader of what a dead one led, take less.
SILENT_S_MAX = 10.0


def no_broker() -> str | None:
    """Return that no broker of ours answers, if that has been so for a while; None otherwise."""
    if (told := other_cluster()) is not None:
        return told
    silence = silent_s()
    if silence < SILENT_S_MAX:
        return None
    return silence_told(silence)


def silence_told(seconds: float) -> str:
    """Return in words that no broker answers for so long."""
    return f"no Kafka broker answers for {seconds:.0f} s"


def readiness_told(reason: str | None) -> dict[str, str]:
    """Return what ``/readyz`` says: the reason if there is one, with status 503."""
    if reason is None:
        return {"status": "ready"}
    return {"status": "not ready", "reason": reason}
