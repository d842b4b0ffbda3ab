"""Sketches of distributions, and what is learned of reply lengths with them."""

from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.learning.histogram import BINS_MAX, DecayingHistogram, merged, quantile
from policies.learning.output_lengths import KEYS_MAX, SEEN_MIN, TOLD_MAX, LengthLog, Lengths

# A bin is 2^(1/4) wide.
WITHIN = 2**0.25


def sketch_of(values: list[float], memory: int = 10**9) -> DecayingHistogram:
    sketch = DecayingHistogram(memory)
    for value in values:
        sketch.add(value)
    return sketch


@given(st.lists(st.floats(0.1, 100_000.0), min_size=20, max_size=200))
def test_quantiles_are_true_to_a_bin(values: list[float]) -> None:
    counts = merged([sketch_of(values).counts()])
    for share, exact in zip((0.25, 0.5, 0.75), quantiles(values, n=4), strict=True):
        ordered = sorted(values)
        near = ordered[max(0, int(share * len(values)) - 1)], ordered[int(share * len(values))]
        assert min(near) / WITHIN <= quantile(counts, share) <= max(near) * WITHIN, exact
    assert sketch_of(values).mean == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_the_order_of_workers_makes_no_difference_and_counts_add_up() -> None:
    first, second = sketch_of([3.0] * 5).counts(), sketch_of([3.0, 700.0]).counts()
    assert merged([first, second]) == merged([second, first])
    assert sum(merged([first, second])) == 7
    assert len(merged([sketch_of([1e12]).counts()])) == BINS_MAX


def test_old_values_are_forgotten() -> None:
    sketch = sketch_of([1000.0] * 200 + [10.0] * 200, memory=50)
    assert quantile(merged([sketch.counts()]), 0.9) < 12
    assert sketch.total == pytest.approx(50, rel=0.05)


def test_a_tenant_with_few_replies_has_the_length_of_all_tenants() -> None:
    log = LengthLog()
    for _ in range(100):
        log.learn("chat", "llama", "acme", 400)
    for _ in range(10):
        log.learn("chat", "llama", "globex", 10)
    lengths = Lengths()
    assert lengths.find("chat", "llama", "acme") is None
    lengths.report("a/1", log.told())
    for tenant in ("acme", "globex", "initech"):
        found = lengths.find("chat", "llama", tenant)
        assert found is not None
        assert 355 <= found.expected <= 400
        assert found.expected <= found.high
    for _ in range(20):
        log.learn("chat", "llama", "globex", 10)
    lengths.report("a/1", log.told())
    found = lengths.find("chat", "llama", "globex")
    assert found is not None
    assert found.expected == 10
    assert lengths.find("chat", "other", "acme") is None
    lengths.drop("a/1")
    assert lengths.find("chat", "llama", "acme") is None


def test_what_two_workers_saw_counts_together() -> None:
    each = int(SEEN_MIN * 0.6)
    lengths = Lengths()
    for worker in ("a/1", "b/1"):
        log = LengthLog()
        for _ in range(each):
            log.learn("chat", "llama", "acme", 100)
        assert lengths.find("chat", "llama", "acme") is None
        lengths.report(worker, log.told())
    found = lengths.find("chat", "llama", "acme")
    assert found is not None
    assert 0.5 <= found.confidence < 0.9


def test_what_a_worker_keeps_and_tells_is_bounded() -> None:
    log = LengthLog()
    for number in range(2 * KEYS_MAX):
        log.learn("chat", "llama", f"tenant-{number}", 100)
    log.learn("embedding", "minilm", "acme", 0)
    told = log.told()
    assert len(told) == TOLD_MAX
    assert all(t.task == "chat" for t in told)
    for _ in range(5):
        log.learn("chat", "llama", "busy", 100)
    assert log.told()[0].tenant == "busy"
