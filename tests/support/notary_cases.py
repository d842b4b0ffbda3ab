"""A router whose transactions are signed for, and the roots of its chain."""

from stream_cases import Yard

from streams.router.stage import Router
from topics import Root, decode

CHAIN = "yard.router-yard.requests-0"


def router(yard: Yard) -> Router:
    return Router(
        yard.situation(),
        yard.evidence_writer(),
        yard.clock,
        yard.telemetry,
        request_bytes_max=100_000,
        duplicate_window_records=0,
    )


def roots(yard: Yard) -> list[Root]:
    found = [
        decode(Root, r.value or b"") for r in yard.cluster.records(yard.catalogue.evidence_roots)
    ]
    return sorted(found, key=lambda root: root.statement.sequence)
