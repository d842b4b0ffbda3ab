"""Backends of pools: simulated, model servers, or the worker itself."""

from typing import Annotated, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from policies.config.hardware import Name, Positive
from policies.config.schema import Declaration, cross_field_error
from policies.config.serving import ExtendedDeclaration, Times

_ServedName = Annotated[str, Field(min_length=1, max_length=256)]
"""Whatever the server calls it: vLLM and llama.cpp also use paths."""

_File = Annotated[str, Field(min_length=1, max_length=4_096)]


class SimulatedBackendConfig(ExtendedDeclaration):
    """A simulated accelerator, which answers after the time that the roofline gives.

    `time_scale` 10 answers ten times as fast. `times` are factors on what its devices take, which
    no router knows. `prompt_chunks`: how much of prompts is computed beside what decodes.
    `replies`: whether they go on at other replicas, where they have company.
    """

    added: ClassVar[frozenset[str]] = frozenset({"times", "prompt_chunks", "replies"})

    type: Literal["simulated"] = "simulated"
    provider_name: ClassVar[str] = "shunter"
    time_scale: Positive = 1.0
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    times: Times = Times()
    prompt_chunks: Literal["within_tpot", "full"] = "within_tpot"
    replies: Literal["stay", "migrate"] = "stay"


def _plain_http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise ValueError("must be a URL that begins with http:// or https:// and names a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no credentials; name their variable in api_key_env")
    if parts.query or parts.fragment or any(character.isspace() for character in url):
        raise ValueError("must hold no query, fragment or space")
    return url


_Url = Annotated[str, Field(max_length=2_048), AfterValidator(_plain_http_url)]
_MetricName = Annotated[str, Field(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]{0,255}$")]


# Vendors with an OpenAI-compatible API by the end of its host, as the GenAI conventions name them.
_PROVIDERS = {
    "openai.azure.com": "azure.ai.openai",
    "services.ai.azure.com": "azure.ai.inference",
    "anthropic.com": "anthropic",
    "cohere.ai": "cohere",
    "deepseek.com": "deepseek",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "groq.com": "groq",
    "mistral.ai": "mistral_ai",
    "perplexity.ai": "perplexity",
    "x.ai": "x_ai",
}


class OpenAIBackendConfig(ExtendedDeclaration):
    """A model server with the OpenAI API, such as vLLM, SGLang, TGI, llama.cpp or a vendor's.

    `api_key_env` names the environment variable that holds the key. `served_name` gives the
    server's name for a variant, if that is not the variant's own.
    """

    added: ClassVar[frozenset[str]] = frozenset({"priority", "provider"})

    type: Literal["openai"]
    base_url: _Url
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")] | None = None
    served_name: dict[Name, _ServedName] = Field(default_factory=dict)
    ca_file: _File | None = None
    """PEM file of the authorities to trust in place of the machine's."""
    stream: Annotated[bool, Field(strict=True)] = True
    """False for a server that can't stream: the time to the first token is then not known."""
    connect_s_max: Positive = 3.0
    """Longest wait for a connection."""
    first_token_s_max: Positive = 120.0
    """Longest wait for the first token: queue and prefill of the server. For an answer that is not
    streamed, longest wait for all of it."""
    idle_s_max: Positive = 30.0
    """Longest wait between two tokens."""
    answer_bytes_max: Annotated[int, Field(strict=True, ge=1_024, le=10 * 1024 * 1024)] = (
        8 * 1024 * 1024
    )
    """Longest answer; the rest of a longer one is not read."""
    metrics_url: _Url | None = None
    """Prometheus metrics of the server; `/metrics` of its origin where unset."""
    metrics_names: dict[Literal["running", "queued", "kv_usage"], _MetricName] = Field(
        default_factory=dict
    )
    """What its metrics are called, where it is none of vLLM, SGLang, TGI and llama.cpp."""
    priority: Literal["lower_first", "higher_first"] | None = None
    """How the server reads `priority` of a request: vLLM serves lower ones first, SGLang higher
    ones. None for one that schedules without priorities, and is told none."""
    provider: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] | None = None
    """What spans and metrics call it (``gen_ai.provider.name``); None: by the host of its URL."""

    @property
    def provider_name(self) -> str:
        """The provider, as the GenAI conventions name it; `openai` at a host they don't know."""
        host = urlsplit(self.base_url).hostname or ""
        found = (name for end, name in _PROVIDERS.items() if f".{host}".endswith(f".{end}"))
        return self.provider or next(found, "openai")


class CPUBackendConfig(Declaration):
    """Small models of embeddings and of moderations, run in the worker.

    Both come with the package's extra `cpu`. `model_file` and `tokenizer_file` name another
    sentence-transformers model for embeddings: ONNX with mean pooling, and its `tokenizer.json`.
    """

    type: Literal["cpu"]
    provider_name: ClassVar[str] = "shunter"
    model_file: _File | None = None
    tokenizer_file: _File | None = None
    threads: Annotated[int, Field(strict=True, ge=1, le=1_024)] = 1
    """Requests computed side by side, each by one thread."""

    @model_validator(mode="after")
    def _both_files_or_none(self) -> Self:
        if (self.model_file is None) != (self.tokenizer_file is None):
            message = "must be given together with the other of model_file and tokenizer_file"
            raise cross_field_error(
                "CPUBackendConfig", [(("model_file",), self.model_file, message)]
            )
        return self


Backend = Annotated[
    SimulatedBackendConfig | OpenAIBackendConfig | CPUBackendConfig, Field(discriminator="type")
]
