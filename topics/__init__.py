"""What travels: record models, the topic catalogue, codecs, headers, administration, a broker.

Belongs here: what two processes must agree on, and what creates and checks topics. Does not: any
decision about a request (``policies``), any loop that moves one (``streams``, ``workers``).
"""

from topics.cancellation import Cancellation, parse_cancellation
from topics.catalogue import Catalogue, Topic
from topics.codec import decode, encode
from topics.errors import BadRecordError
from topics.evidence import Evidence, Hold, Host, Shadow, Source, TextDigest
from topics.placement import Batch, Candidate, Envelope, Placement
from topics.policy_log import (
    Declared,
    PolicyChange,
    PolicyEntry,
    PolicyLog,
    entry_key,
)
from topics.profile import Fallback, Profile, Tag
from topics.progress import Progress, decode_progress, progress_key
from topics.request import InferenceRequest, duration_s, parse_request, peek_id
from topics.result import Cost, Response, Result, ResultError, Timing, Usage
from topics.roots import (
    ChainHead,
    Heads,
    HeadsStatement,
    KeyEntry,
    KeyStatement,
    PublishedKey,
    Revocation,
    Root,
    RootStatement,
)
from topics.salts import Salt
from topics.seen_ids import SeenIds
from topics.settings import Settings
from topics.status import (
    LatencyError,
    OutputLengths,
    PoolStatus,
    ServerLoad,
    VariantStatus,
    status_key,
)
from topics.stream import StreamPiece

__all__ = [
    "BadRecordError",
    "Batch",
    "Cancellation",
    "Candidate",
    "Catalogue",
    "ChainHead",
    "Cost",
    "Declared",
    "Envelope",
    "Evidence",
    "Fallback",
    "Heads",
    "HeadsStatement",
    "Hold",
    "Host",
    "InferenceRequest",
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
    "VariantStatus",
    "decode",
    "decode_progress",
    "duration_s",
    "encode",
    "entry_key",
    "parse_cancellation",
    "parse_request",
    "peek_id",
    "progress_key",
    "status_key",
]
