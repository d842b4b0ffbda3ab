"""URLs of SDKs that are not served are refused by name, and the error says what to do instead."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from gateway.http.middleware import as_api_error
from topics.openai_api.operations import unserved


@pytest.mark.parametrize(
    ("path", "code", "instead"),
    [
        ("/v1/responses/resp_1", "operation_not_served", "/v1/requests/ID"),
        ("/v1/messages", "operation_not_served", "/v1/chat/completions"),
        ("/v1/audio/transcriptions", "operation_not_served", "input_audio"),
        ("/v1/audio/speech", "operation_not_served", "no pool makes speech"),
        ("/v1/images/generations", "operation_not_served", "no pool makes images"),
        ("/v1/chat/completions/chatcmpl-1", "operation_not_served", "/v1/requests/ID"),
        ("/v1/chat/completions/", "operation_not_served", "it is /v1/chat/completions,"),
        ("/v1//embeddings", "operation_not_served", "it is /v1/embeddings,"),
        ("/v1/responses/", "operation_not_served", "it is /v1/responses,"),
        ("/v1/evals", "operation_not_served", "/v1/batches"),
        ("/v1/containers", "operation_not_served", "no pool runs code"),
        ("/v1/skills", "operation_not_served", "with the conversation"),
        ("/v1/rerank", "operation_not_served", "/v1/embeddings"),
        ("/v1/nothing", "unknown_url", "/docs"),
    ],
)
def test_it_is_named_with_what_to_do(path: str, code: str, instead: str) -> None:
    request = make_mocked_request("POST", path)
    error = as_api_error(request, web.HTTPNotFound())
    assert (error.status, error.code) == (404, code)
    assert f"POST {path}" in error.message
    assert instead in error.message


@pytest.mark.parametrize(
    ("url", "instead"),
    [
        ("/v1/chat/completions/", "it is /v1/chat/completions,"),
        ("/v1//moderations", "it is /v1/moderations,"),
        ("/v1/responses", "POST /v1/chat/completions"),
        ("/v1/responses/", "GET /v1/requests/ID"),
        ("/", "the url of a request is"),
    ],
)
def test_a_published_request_with_such_a_url_is_told_what_a_topic_takes(
    url: str, instead: str
) -> None:
    told = unserved(url, {})
    assert told is not None
    assert told.startswith(f"{url} is not served: ")
    assert instead in told
