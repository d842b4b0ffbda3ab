"""Tokens of a request: those of its prompts, and those expected of a reply."""

from collections.abc import Callable, Iterator, Sequence

from policies.config.classes import WorkloadClass
from policies.config.options import ModelOptions
from policies.learning.output_lengths import Lengths
from policies.scoring.constraints import told_tokens
from topics import InferenceRequest, Tag

# A token of English text is about four characters in the vocabularies of current models.
CHARACTERS_PER_TOKEN = 4
# What a chat template adds to each message.
TOKENS_PER_MESSAGE = 4
# Tokens of one image or audio part, of which the router does not look inside.
TOKENS_PER_MEDIA_PART = 512

_NO_OUTPUT = frozenset({"embeddings"})

CountTokens = Callable[[str], int]


def prompt_tags(
    request: InferenceRequest, count: CountTokens | None, *, is_limited: bool
) -> tuple[Tag, Tag]:
    """Return the tokens of all prompts together, and of the longest: the same of one prompt.

    Args:
        request: as parsed from the ingest topic.
        count: counts a text's tokens by the model's own tokenizer; None: by length.
        is_limited: whether a limit is held against them, under which no hint makes them fewer.
    """
    hint, prompts = request.hints.input_tokens, request.prompts
    hinted = None if hint is None else Tag(hint, "client", 1.0)
    if hinted is not None and not is_limited:
        return hinted, hinted if not prompts else _each(hinted, len(prompts))
    tokens, longest, counted = max(_counted(request, count or _tokens_by_length))
    if hinted is not None and hinted.value >= tokens:
        return hinted, hinted if not prompts else _each(hinted, len(prompts))
    sure = 0.6 if count is None else counted
    return Tag(max(1, tokens), "estimate", sure), Tag(max(1, longest), "estimate", sure)


def _counted(request: InferenceRequest, of_text: CountTokens) -> Iterator[tuple[int, int, float]]:
    """Yield tokens of all prompts, those of the longest, and how sure they are.

    Where a body has messages beside a prompt, each counts: which of them a server leaves unread is
    its own, and neither may hide the other.
    """
    body, prompts = request.body, request.prompts
    messages, text = body.get("messages"), request.prompt
    if isinstance(messages, list):
        contents = [message.get("content") for message in messages if isinstance(message, dict)]
        tokens = TOKENS_PER_MESSAGE * len(messages)
        tokens += sum(_text_tokens(content, of_text) for content in contents)
        # What a chat template adds is known roughly, in proportion to little.
        yield tokens, tokens, 0.95
        if text is None:
            return
    if prompts:
        each = [_text_tokens(prompt, of_text) for prompt in prompts]
        yield sum(each), max(each), 1.0
        return
    tokens = _text_tokens(body.get("prompt", body.get("input")) if text is None else text, of_text)
    yield tokens, tokens, 1.0


def _each(hinted: Tag, prompts: int) -> Tag:
    """Return the mean of hinted prompts, of which nobody says how they differ."""
    return Tag(-(-hinted.value // prompts), hinted.source, hinted.confidence)


def _tokens_by_length(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def _text_tokens(content: object, of_text: CountTokens) -> int:
    """Return the tokens of a text, a list of texts or parts, or a list of token ids."""
    if isinstance(content, str):
        return of_text(content)
    if isinstance(content, dict):
        text = content.get("text")
        return _text_tokens(text, of_text) if isinstance(text, str) else TOKENS_PER_MEDIA_PART
    if isinstance(content, Sequence):
        return sum(1 if isinstance(part, int) else _text_tokens(part, of_text) for part in content)
    return 0


def reply_tag(
    request: InferenceRequest,
    task: str,
    workload: WorkloadClass,
    operation: str,
    lengths: Lengths | None,
    is_limited: bool,
) -> tuple[Tag, int | None]:
    """Return the expected length of one reply, and the high one if similar replies were seen.

    Args:
        request: as parsed from the ingest topic.
        task: its class.
        workload: terms of the class.
        operation: of the request.
        lengths: reply lengths seen; None: the policy's expectation.
        is_limited: whether a limit is held against it, under which no hint makes it shorter.
    """
    hint = request.hints.output_tokens
    hinted = None if hint is None else (Tag(hint, "client", 1.0), None)
    if hinted is not None and not is_limited:
        return hinted
    found = _expected(request, task, workload, operation, lengths)
    return found if hinted is None or found[0].value > hinted[0].value else hinted


def _expected(
    request: InferenceRequest,
    task: str,
    workload: WorkloadClass,
    operation: str,
    lengths: Lengths | None,
) -> tuple[Tag, int | None]:
    if operation in _NO_OUTPUT:
        return Tag(0, "estimate", 1.0), None
    seen = None if lengths is None else lengths.find(task, request.model, request.tenant)
    limit = request.output_tokens_max
    expected = workload.output_tokens if seen is None else seen.expected
    high = None if seen is None else seen.high
    if limit is not None and high is not None:
        high = min(limit, high)
    if limit is not None and limit < expected:
        return Tag(limit, "client", 0.7), high
    if seen is None:
        return Tag(expected, "policy", 0.4), None
    return Tag(expected, "estimate", seen.confidence), high


def certain_of(
    request: InferenceRequest, prompt: Tag, output: Tag, serving: ModelOptions | None
) -> int | None:
    """Return what one answer takes for certain; None, so that profiles stay short, as usual.

    Args:
        request: as parsed from the ingest topic.
        prompt: tokens of its longest prompt.
        output: expected tokens of a reply.
        serving: the options that serve the model.
    """
    expected: int = prompt.value + output.value
    limit = request.output_tokens_max if output.value else None
    certain = told_tokens(prompt.value, limit, is_counted=prompt.confidence == 1.0)
    if serving is None or max(certain, expected) <= serving.tokens_max:
        return None
    if limit is None and output.source == "client":
        # Of several prompts the profile has the mean.
        return expected if request.prompts else None
    return certain
