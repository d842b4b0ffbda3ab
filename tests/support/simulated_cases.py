"""Calls to the simulated backend of one pool, made now."""

import time
from dataclasses import replace
from typing import Any

import orjson
from stream_cases import make_options, make_policy, make_profile, request

from topics import Placement, parse_request
from workers.backends.base import Call

OPTION = make_options().of("premium-eu", "yard-8b-fp8")
_POLICY = make_policy()


def make_call(path: Any = "direct", **fields: Any) -> Call:
    parsed = parse_request(orjson.dumps(request(**fields)), bytes_max=100_000)
    placement = Placement("premium-eu", "fast", OPTION.variant, "fp8", "eu-west", path)
    profile = replace(make_profile(_POLICY, **fields), created_at=time.time())
    return Call(parsed, profile, placement)


def sized(name: str, input_tokens: int, output_tokens: int, path: Any = "direct") -> Call:
    hints = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    return make_call(path, id=name, hints=hints)
