"""Operations of OpenAI-style APIs that no pool serves, and what to send instead."""

from collections.abc import Mapping, Sequence
from typing import Any

SERVED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/moderations")
"""The URLs of the operations that a pool may serve."""
RESPONSES = "/v1/responses"
"""The URL of the gateway alone: what it asks for is sent on as a chat."""

_OF_CHATS = frozenset({"messages", "prompt"})
_CHAT = "send the conversation to POST /v1/chat/completions"
# By the beginning of the path.
_INSTEAD = (
    (f"{RESPONSES}/", "no response is stored; GET /v1/requests/ID tells how one ended"),
    (RESPONSES, f"{_CHAT}, with `messages` in place of `input`"),
    ("/v1/chat/completions/", "no answer is stored; GET /v1/requests/ID tells how one ended"),
    ("/v1/conversations", _CHAT),
    ("/v1/chatkit", _CHAT),
    ("/v1/messages", f"it is Anthropic's; {_CHAT}"),
    ("/v1/assistants", _CHAT),
    ("/v1/threads", _CHAT),
    ("/v1/audio/speech", "no pool makes speech"),
    ("/v1/audio/", "send the audio to POST /v1/chat/completions, as a part of type input_audio"),
    ("/v1/realtime", f"{_CHAT}, with stream: true"),
    ("/v1/images", "no pool makes images"),
    ("/v1/videos", "no pool makes videos"),
    ("/v1/fine_tuning", "models are declared in the fleet"),
    ("/v1/vector_stores", "embed texts by POST /v1/embeddings"),
    ("/v1/evals", "run the cases as a batch, by POST /v1/batches"),
    ("/v1/containers", "no pool runs code"),
    ("/v1/skills", "send their text with the conversation"),
    ("/v1/rerank", "embed texts by POST /v1/embeddings"),
    ("/v1/uploads", "upload a file whole, to POST /v1/files"),
)


def instead_of(path: str) -> str | None:
    """Return what to do in place of a call that no pool serves; None for a path of nobody's API."""
    return _plainly(path, (*SERVED, RESPONSES)) or _of_another(path)


def _plainly(path: str, urls: Sequence[str]) -> str | None:
    """Return which of some URLs is meant by one with slashes too many; None: none of them."""
    plain = "/" + "/".join(part for part in path.split("/") if part)
    is_meant = plain != path and plain in urls
    return f"it is {plain}, without the other slashes" if is_meant else None


def _of_another(path: str) -> str | None:
    return next((told for start, told in _INSTEAD if path.startswith(start)), None)


def unserved(url: str, body: Mapping[str, Any]) -> str | None:
    """Return why a request ends without an answer, and what to send; None where it may have one.

    Who publishes embeddings, or a call of another API, and says no URL means no chat.
    """
    if url not in SERVED:
        others = f"the url of a request is {', '.join(SERVED[:-1])} or {SERVED[-1]}"
        instead = _plainly(url, SERVED) or _of_another(url) or others
        return f"{url} is not served: {instead}"
    if url == SERVED[0] and "input" in body and not _OF_CHATS & body.keys():
        return (
            "a body with `input` and no `messages` is no conversation: say its `url`,"
            " /v1/embeddings or /v1/moderations, or send a conversation as `messages`"
        )
    return None
