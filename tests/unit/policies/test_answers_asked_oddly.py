"""Bodies that ask for answers in odd forms: none of them hides work from a limit or a promise."""

from typing import Any

import pytest
from policy_cases import a_situation, bulk, request, tagged
from pydantic import TypeAdapter, ValidationError
from release_cases import members, target_of

from policies.batching.groups import group_of

LISTED: dict[str, tuple[str, Any]] = {
    "/v1/completions": ("prompt", ["w" * 4000] * 50),
    "/v1/embeddings": ("input", ["w" * 4000] * 50),
    "/v1/moderations": ("input", ["w" * 4000] * 50),
}


@pytest.mark.parametrize(
    "asked",
    ["3.0", " +7.0 ", "1_00", "1_0.00", "000000000000000100", "100", "\t7\n", "٣", "3.", "1e2",
     "-3", "0x10", "", "true", "1" * 5000],
)  # fmt: skip
def test_a_number_in_words_counts_as_the_parser_of_servers_reads_it(asked: str) -> None:
    try:
        expected = max(1, TypeAdapter(int).validate_python(asked))
    except ValidationError:
        expected = 1
    assert request(body={"model": "llama", "n": asked}).replies == expected
    assert request(body={"model": "llama", "n": "999_999_999_999"}).replies == 1_000_000


@pytest.mark.parametrize("url", LISTED)
@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": "hi"}]])
def test_messages_hide_no_prompts_of_an_endpoint_that_reads_none(
    url: str, messages: list[Any]
) -> None:
    name, prompts = LISTED[url]
    body = {"model": "llama", name: prompts}
    plain, beside = (
        tagged(url=url, body=each).profile for each in (body, body | {"messages": messages})
    )
    assert beside.input_tokens == plain.input_tokens == 50_000
    assert (beside.prompts, beside.certain_tokens) == (50, plain.certain_tokens)


def test_a_text_beside_messages_hides_none_of_them_and_another_endpoints_text_counts_nothing() -> (
    None
):
    said = {"model": "llama", "messages": [{"role": "user", "content": "w" * 4000}]}
    for url in LISTED:
        assert tagged(url=url, body=said | {"input": "", "prompt": ""}).profile.input_tokens == 1004
    assert tagged(body=said | {"prompt": "w" * 40_000}).profile.input_tokens == 1004
    text = {"model": "llama", "prompt": "", "input": "w" * 4000}
    assert tagged(url="/v1/embeddings", body=text).profile.input_tokens == 1000


def test_a_list_of_prompts_and_as_many_replies_to_one_share_no_batch() -> None:
    listed = bulk(id="a", prompts=30, input_tokens=30 * 400)
    replied = bulk(id="b", replies=30)
    assert group_of(listed, ()) != group_of(replied, ())
    made = a_situation()
    # Together they would be promised as 30 replies to each of 30 prompts.
    alone = [target_of(members(each), made).estimate.finish_s for each in (listed, replied)]
    both = target_of(members(listed, replied), made).estimate.finish_s
    assert both > 5 * max(alone)
    assert group_of(listed, ()) == group_of(bulk(prompts=17, input_tokens=17 * 400), ())
    assert group_of(bulk(prompts=2, replies=2, input_tokens=800), ()) != group_of(
        bulk(prompts=2, input_tokens=800), ()
    )
