"""What a span says of a call: numbers and words of closed sets, whatever the bodies hold."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import PROPERTY

from streams.tracing import span_attributes as a
from workers.call_attributes import asked, ended

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=9), each),
)
NAMES = ("n", "seed", "temperature", "top_p", "response_format", "frequency_penalty")


@settings(PROPERTY)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES), VALUES)
def test_no_text_of_a_body_is_said(body: dict[str, Any], answer: Any) -> None:
    parts = asked(body, None, body.get("n")), ended(answer), ended({"choices": [answer, body]})
    said = {name: value for part in parts for name, value in part.items()}
    assert {value for value in said.values() if isinstance(value, str)} <= {"json", "text"}
    assert all(value is None or isinstance(value, int | float | str) for value in said.values())
    a.said(said)


def test_what_the_conventions_leave_out_is_left_out() -> None:
    said = asked({"n": 1, "seed": True, "response_format": {"type": "xml"}}, None, None)
    assert not [name for name, value in said.items() if value is not None]
    (reasons,) = ended({"choices": [{"finish_reason": "stop"}, {"finish_reason": "x"}]}).values()
    assert reasons == ["stop"]
