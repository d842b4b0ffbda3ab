"""Replies that an answer has: servers that don't know ``n`` or ``best_of`` write fewer."""

from dataclasses import replace

from policies import Option
from policies.scoring.answers import Answers
from topics import InferenceRequest, Profile, Response, Usage


def replies_in(response: Response | None, request: InferenceRequest, profile: Profile) -> int:
    """Return how many replies a server wrote for a request; 0 where its answer doesn't tell.

    Args:
        response: the answer; None if it is not kept.
        request: as the client sent it.
        profile: of the request.
    """
    if profile.answers == 1:
        return 1
    body = None if response is None else response.body
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list):
        return 0
    shown = profile.prompts * min(request.choices, profile.replies)
    if len(choices) < shown:
        return len(choices)
    # Of `best_of` the others are not seen.
    return 0 if shown < profile.answers else profile.answers


def reply_tokens(profile: Profile, usage: Usage, replies: int) -> int:
    """Return the tokens of one reply of so many; of 0, as if there were all that were asked for."""
    return -(-usage.output_tokens // (replies or profile.answers))


def decode_steps(profile: Profile, usage: Usage, replies: int, option: Option) -> int:
    """Return the steps from the first token to the last of all replies.

    They are written together, in as many rounds as they need by places or memory.
    """
    each_tokens = reply_tokens(profile, usage, replies)
    written = Answers.of(replace(profile, output_tokens=each_tokens))
    return written.rounds(option, replies or profile.answers) * each_tokens - 1
