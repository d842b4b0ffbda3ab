"""Topics: record models, the topic catalogue, codecs, headers, administration, a broker.

This package holds what two processes must agree on, and what creates and checks topics. Decisions
about requests are in ``policies``, loops that move them in ``streams`` and ``workers``.
"""

from topics.records.cancellation import Cancellation, parse_cancellation
from topics.records.claim import KeyClaim
from topics.records.evidence import Evidence, Hold, Host, Shadow, Source, TextDigest
from topics.records.footprint import Footprint
from topics.records.heartbeat import (
    LatencyError,
    OutputLengths,
    PoolStatus,
    ServerLoad,
    VariantStatus,
    status_key,
)
from topics.records.placement import Batch, Candidate, Envelope, Placement
from topics.records.policy_change import Declared, PolicyChange, PolicyEntry, PolicyLog, entry_key
from topics.records.profile import Fallback, Profile, Tag
from topics.records.progress import Progress, decode_progress, progress_key
from topics.records.quality import (
    BACKGROUND_TASK,
    Comparison,
    QualityCheck,
    QualityEntry,
    VariantQuality,
    WatchSpending,
    quality_key,
)
from topics.records.quote import QuoteAnswer, QuoteOffer, QuoteQuestion
from topics.records.quote_terms import Charge, Quoted
from topics.records.request import InferenceRequest, duration_s, parse_request, peek_id
from topics.records.result import Cost, Response, Result, ResultError, Timing, Usage
from topics.records.seen_ids import SeenIds
from topics.records.stream_chunk import StreamPiece
from topics.registry import Catalogue, Topic
from topics.settings import Settings
from topics.signing.salts import Salt
from topics.signing.signed_root import (
    ChainHead,
    Heads,
    HeadsStatement,
    Introduction,
    IntroductionStatement,
    KeyEntry,
    KeyStatement,
    PublishedKey,
    Revocation,
    Root,
    RootStatement,
)
from topics.wire.codec import decode, encode
from topics.wire.errors import BadRecordError

__all__ = [
    "BACKGROUND_TASK",
    "BadRecordError",
    "Batch",
    "Cancellation",
    "Candidate",
    "Catalogue",
    "ChainHead",
    "Charge",
    "Comparison",
    "Cost",
    "Declared",
    "Envelope",
    "Evidence",
    "Fallback",
    "Footprint",
    "Heads",
    "HeadsStatement",
    "Hold",
    "Host",
    "InferenceRequest",
    "Introduction",
    "IntroductionStatement",
    "KeyClaim",
    "KeyEntry",
    "KeyStatement",
    "LatencyError",
    "OutputLengths",
    "Placement",
    "PolicyChange",
    "PolicyEntry",
    "PolicyLog",
    "PoolStatus",
    "Profile",
    "Progress",
    "PublishedKey",
    "QualityCheck",
    "QualityEntry",
    "QuoteAnswer",
    "QuoteOffer",
    "QuoteQuestion",
    "Quoted",
    "Response",
    "Result",
    "ResultError",
    "Revocation",
    "Root",
    "RootStatement",
    "Salt",
    "SeenIds",
    "ServerLoad",
    "Settings",
    "Shadow",
    "Source",
    "StreamPiece",
    "Tag",
    "TextDigest",
    "Timing",
    "Topic",
    "Usage",
    "VariantQuality",
    "VariantStatus",
    "WatchSpending",
    "decode",
    "decode_progress",
    "duration_s",
    "encode",
    "entry_key",
    "parse_cancellation",
    "parse_request",
    "peek_id",
    "progress_key",
    "quality_key",
    "status_key",
]
