"""Common parts of held requests are kept once, and nothing of them changes."""

from dataclasses import replace

from stream_cases import make_policy, make_profile

from streams.batcher.interning import share_common
from topics import Profile, decode, encode


def decoded(profile: Profile) -> Profile:
    return decode(Profile, encode(profile))


def test_names_numbers_and_no_labels_are_shared_and_the_profile_is_the_same() -> None:
    original = replace(make_profile(make_policy()), tenant="a tenant of its own")
    one, other = decoded(original), decoded(original)
    assert one.tenant is not other.tenant
    for profile in (one, other):
        share_common(profile)
    assert one == other == original
    for name in ("tenant", "task", "model", "tier", "longest_wait_s", "price_factor", "labels"):
        assert getattr(one, name) is getattr(other, name), name


def test_labels_stay_those_of_each() -> None:
    labelled = decoded(replace(make_profile(make_policy()), labels={"cooling": "air"}))
    share_common(labelled)
    assert labelled.labels == {"cooling": "air"}
