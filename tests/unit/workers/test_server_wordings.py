"""Too-long prompts, and too many answers, as model servers word them: the request goes elsewhere.

The wordings are those of the servers' own sources:

- vLLM (vllm-project/vllm): ``vllm/entrypoints/openai`` and ``vllm/v1/engine``, older and newer.
- SGLang (sgl-project/sglang): ``python/sglang/srt/managers/tokenizer_manager.py`` and
  ``managers/utils.py`` (``validate_input_length``).
- TGI (huggingface/text-generation-inference): ``router/src/validation.rs``.
- llama.cpp (ggml-org/llama.cpp): ``tools/server/server-context.cpp``; an embedding has to fit one
  physical batch.
- Together: in SGLang's words, and in TGI's for older models (stanford-crfm/helm, pull 2079), in two
  versions.
- TensorRT-LLM (NVIDIA/TensorRT-LLM): ``tensorrt_llm/llmapi/llm.py`` and the executor.
- Ollama (ollama/ollama): ``openai/openai.go``; a text completion has one prompt there.
- Anthropic, whose words vendors with the OpenAI API pass on.
"""

from typing import Any

import pytest

from workers.backends.openai.errors import classify

VLLM = (
    "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens"
    " (8500 in the messages, 500 in the completion). Please reduce the length of the messages."
)
VLLM_ENGINE = (
    "The decoder prompt (length 8357) is longer than the maximum model length of 8192. Make sure"
    " that the model's length is no smaller than the number of text tokens."
)
VLLM_OUTPUT = (
    "'max_tokens' or 'max_completion_tokens' is too large: 9000. This model's maximum context"
    " length is 8192 tokens and your request has 12 input tokens."
)
VLLM_INPUT = (
    "You passed 9000 input tokens and requested 500 output tokens. However, the model's context"
    " length is only 8192, resulting in a maximum input length of 7692. Please reduce the length"
    " of the input messages."
)
SGLANG = "The input (9000 tokens) is longer than the model's context length (8192 tokens)."
SGLANG_OUTPUT = (
    "Requested token count exceeds the model's maximum context length of 8192 tokens. You"
    " requested a total of 9000 tokens: 8000 tokens from the input messages and 1000 tokens for"
    " the completion."
)
SGLANG_POOL = (
    "Input length (9000 tokens) exceeds the maximum allowed length (8192 tokens). Use a shorter"
    " input or enable --allow-auto-truncate."
)
TGI = "Input validation error: `inputs` must have less than 4096 tokens. Given: 4545"
TGI_OUTPUT = (
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4031"
    " `inputs` tokens and 200 `max_new_tokens`"
)
TOGETHER = (
    "Input validation error: The sum of 'inputs' tokens and 'max_new_tokens' must not exceed 4097."
    " Please adjust your inputs accordingly."
)
TENSORRT_LLM = (
    "The sum of prompt length (8000.0) and query length (0) max_tokens (500) should not exceed"
    " max_seq_len (8192)"
)
TENSORRT_LLM_EXECUTOR = "Prompt length (9000) exceeds maximum input length (8192). Set log level to"
ANTHROPIC = "prompt is too long: 208310 tokens > 200000 maximum"
ANTHROPIC_OUTPUT = (
    "input length and max_tokens exceed context limit: 188240 + 21333 > 200000, decrease input"
    " length or max_tokens and try again"
)
LLAMA_CPP = "request (9412 tokens) exceeds the available context size (8192 tokens), try it"
LLAMA_CPP_BATCH = (
    "input (2055 tokens) is too large to process. increase the physical batch size (current batch"
    " size: 2048)"
)
LLAMA_CPP_CONTEXT = "input is larger than the max context size. skipping"
VLLM_N = (
    "n must be at most 16384, got 20000. To increase this limit, set the VLLM_MAX_N_SEQUENCES"
    " environment variable."
)
TGI_BEST_OF = "Input validation error: `best_of` must be > 0 and"
TGI_ONE = "Input validation error: `best_of` != 1 is not allowed for this endpoint"
OLLAMA = "json: cannot unmarshal array into Go struct field"


def openai(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def flat(message: str) -> dict[str, Any]:
    """An error as older vLLM and SGLang word it: without an object around it."""
    return {"object": "error", "message": message, "type": "BadRequestError", "code": 400}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, openai(VLLM, "BadRequestError")),
        (400, flat(VLLM)),
        (400, openai(VLLM_ENGINE)),
        (500, openai(VLLM_ENGINE, "InternalServerError")),
        (400, openai(VLLM_OUTPUT)),
        (400, openai(VLLM_INPUT, "BadRequestError")),
        (400, flat(SGLANG)),
        (400, flat(SGLANG_OUTPUT)),
        (400, openai(SGLANG_POOL)),
        (422, {"error": TGI, "error_type": "validation"}),
        (422, {"error": TGI_OUTPUT, "error_type": "validation"}),
        (400, openai(LLAMA_CPP, "exceed_context_size_error")),
        (500, openai(LLAMA_CPP_BATCH, "server_error")),
        (500, openai(LLAMA_CPP_CONTEXT, "server_error")),
        (400, openai(SGLANG)),
        (422, openai(TGI_OUTPUT)),
        (422, openai(TOGETHER)),
        (400, flat(TENSORRT_LLM)),
        (400, flat(TENSORRT_LLM_EXECUTOR)),
        (400, openai(ANTHROPIC)),
        (400, openai(ANTHROPIC_OUTPUT)),
        (413, None),
    ],
)
def test_a_too_long_prompt_goes_elsewhere_and_is_no_fault_of_the_pool(
    status: int, body: Any
) -> None:
    error = classify(status, body, {}, 0.0)
    assert (error.code, error.retry, error.is_pool_fault) == (
        "context_too_long",
        "elsewhere",
        False,
    )


@pytest.mark.parametrize(
    ("status", "body"),
    [
        # `n` beyond the slots of llama.cpp, and any but 1 before it wrote several.
        (400, openai("Field 'n': Value must be between 1 <= value <= 4, but got 8")),
        (500, openai("Only one completion choice is allowed", "server_error")),
        (422, {"error": f"{TGI_BEST_OF} <= 2. Given: 3", "error_type": "validation"}),
        (422, {"error": TGI_ONE, "error_type": "validation"}),
        (400, openai(VLLM_N)),
        (400, openai("prompt list length 2000 exceeds the maximum of 1024")),
        (400, openai(f"{OLLAMA} CompletionRequest.prompt of type string")),
    ],
)
def test_more_answers_than_a_server_writes_go_elsewhere_and_are_no_fault_of_the_pool(
    status: int, body: Any
) -> None:
    error = classify(status, body, {}, 0.0)
    assert (error.code, error.retry, error.is_pool_fault) == (
        "too_many_answers",
        "elsewhere",
        False,
    )


@pytest.mark.parametrize(
    "message",
    [
        "Invalid 'tools': array too long. Expected an array with maximum length 128.",
        "Input validation error: `temperature` must be strictly positive",
        "Input validation error: `max_new_tokens` must be <= 4096. Given: 5000",
        "max_tokens must be at least 1, got 0.",
        "Field 'n': Value must be between 1 <= value <= 4, but got 0",
    ],
)
def test_another_fault_of_the_request_goes_nowhere(message: str) -> None:
    error = classify(400, openai(message), {}, 0.0)
    assert (error.code, error.retry) == ("request_refused", "never")
