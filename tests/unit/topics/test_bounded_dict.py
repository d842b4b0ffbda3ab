"""A dict with a limit: what it forgets, and what it keeps."""

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import PROPERTY

from topics.bounded_dict import BoundedDict


def test_the_oldest_is_forgotten_and_one_that_is_put_again_is_new() -> None:
    found: BoundedDict[str, int] = BoundedDict(2)
    found.put("a", 1)
    found.put("b", 2)
    found.put("a", 3)
    assert found.get("b") == 2  # which renews nothing
    found.put("c", 4)
    assert list(found.items()) == [("a", 3), ("c", 4)]


def test_one_that_is_deleted_leaves_room() -> None:
    found: BoundedDict[str, int] = BoundedDict(2)
    for key in "ab":
        found.put(key, 0)
    del found["b"]
    found.put("c", 0)
    assert list(found) == ["a", "c"]


@settings(PROPERTY)
@given(keys=st.lists(st.integers(0, 9), max_size=60), entries_max=st.integers(1, 12))
def test_those_put_last_are_there_in_their_order(keys: list[int], entries_max: int) -> None:
    found: BoundedDict[int, int] = BoundedDict(entries_max)
    for at, key in enumerate(keys):
        found.put(key, at)
    newest = {key: at for at, key in enumerate(keys)}
    in_order = sorted(newest.items(), key=lambda pair: pair[1])
    assert list(found.items()) == in_order[-entries_max:]
