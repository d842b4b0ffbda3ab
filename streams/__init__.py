"""What moves requests: the transactor, router, batcher, and the process that hosts them.

Belongs here: the engine (log, stage, transactor, progress), the stages of the router process,
telemetry. Does not: why a request goes somewhere (``policies``), or what runs it (``workers``).
"""

from streams.batcher import Batcher
from streams.cancellations import CancellationFollower, Cancellations, message_of
from streams.canceller import Canceller
from streams.clock import Clock, SystemClock
from streams.in_force import InForce, Terms
from streams.kafka import KafkaLog
from streams.log import Log, LogError, Outgoing, Partition, Record, Writer
from streams.outgoing import Scribe
from streams.router import Router
from streams.run import run_router
from streams.stage import Effect, Stage, Work
from streams.telemetry import Telemetry
from streams.transactor import Transactor

__all__ = [
    "Batcher",
    "CancellationFollower",
    "Cancellations",
    "Canceller",
    "Clock",
    "Effect",
    "InForce",
    "KafkaLog",
    "Log",
    "LogError",
    "Outgoing",
    "Partition",
    "Record",
    "Router",
    "Scribe",
    "Stage",
    "SystemClock",
    "Telemetry",
    "Terms",
    "Transactor",
    "Work",
    "Writer",
    "message_of",
    "run_router",
]
