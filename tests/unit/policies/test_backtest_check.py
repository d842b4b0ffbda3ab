"""Hard constraints in a backtest: kept by every policy at each try, and any breach is seen."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from backtest_cases import FLEET, POLICY, asked, replay, sample
from stream_cases import make_fleet, make_policy

from policies import Extension, Option, compile_options
from policies.backtest.fault_model import Outage, Reality
from policies.backtest.route import Send, Unserved
from policies.config.policy import DataClass
from shunter.backtest.check import is_broken
from shunter.backtest.suite import ScoredRun, Setting, run_one, runs
from topics import Envelope, PoolStatus, Profile
from topics.records.money import Amounts

YARD = make_fleet()
OPTIONS = compile_options(YARD)
STRICT = make_policy().model_copy(
    update={
        "data_classes": {
            "regulated": DataClass(regions=("eu-west",)),
            "exact": DataClass(precisions=("bf16",)),
            "cool": DataClass(labels={"cooling": "liquid"}),
            "public": DataClass(),
        }
    }
)


def test_what_must_not_be_is_seen() -> None:
    run, options = replay()
    pairs = list(zip(run.outcomes, sample(), strict=True))
    assert not any(is_broken(s, a, FLEET, POLICY) for o, a in pairs for s in o.sends)
    code, coding = next((o.sends[0], a) for o, a in pairs if a.task == "code_planning")
    chat, chatting = next((o.sends[0], a) for o, a in pairs if o.variant == "llama-3.1-70b-fp8")
    small, waiting = next((o.sends[0], a) for o, a in pairs if a.task == "summarization")
    breaches = [
        (replace(code, option=replace(code.option, pool="cpu-eu")), coding),
        (replace(code, option=replace(code.option, precision="fp8")), coding),
        (replace(code, option=options.of("premium-us", "llama-3.1-70b-fp8")), coding),
        (replace(small, option=options.by_pool["lpddr-us"][0], path="direct"), waiting),
        (chat, replace(chatting, input_tokens=200_000)),
        (replace(chat, option=options.of("lpddr-eu", "llama-3.1-70b-mxfp4")), chatting),
        (chat, replace(chatting, task="embedding")),
    ]
    assert [is_broken(send, arrival, FLEET, POLICY) for send, arrival in breaches] == [True] * 7
    small_devices = {n: d.model_copy(update={"memory_gb": 4.0}) for n, d in FLEET.devices.items()}
    assert is_broken(small, waiting, FLEET.model_copy(update={"devices": small_devices}), POLICY)


@pytest.mark.parametrize(
    ("broken", "kept"),
    [
        ({"regions": ["eu-west"]}, {"regions": ["us-east", "eu-west"]}),
        ({"regions": []}, {"regions": ["us-east"]}),
        ({"precisions": ["bf16"]}, {"precisions": ["fp8"]}),
        ({"pools": ["premium-eu"]}, {"pools": ["premium-us"]}),
        ({"exclude_pools": ["premium-us"]}, {"exclude_pools": ["premium-eu"]}),
        ({"labels": {"cooling": "air"}}, {}),
        ({"max_cost_usd": 0.0009}, {"max_cost_usd": 0.0011}),
        ({"data_class": "regulated"}, {"data_class": "public"}),
        ({"data_class": "exact"}, {"data_class": "public", "regions": ["us-east"]}),
        ({"data_class": "cool"}, {"data_class": "public", "precisions": ["fp8"]}),
        ({"data_class": "regulated", "regions": ["us-east"]}, {}),
    ],
)
def test_a_request_has_constraints_of_its_own(broken: Any, kept: Any) -> None:
    (option,) = OPTIONS.by_pool["premium-us"]
    for constraints, expected in ((broken, True), (kept, False)):
        arrival = asked(0, 0.0, constraints=constraints)
        promised = Envelope(cost_usd=0.001, ttft_s=0.1, finish_s=1.0)
        for path in ("direct", "batch"):
            send = Send(_any_profile(), option, path, promised=promised)
            assert is_broken(send, arrival, YARD, STRICT) is expected


def test_what_an_extension_refuses_is_a_constraint() -> None:
    (option,) = OPTIONS.by_pool["premium-us"]
    send = Send(_any_profile(), option, "direct")
    assert is_broken(send, asked(0, 0.0), YARD, _ruled())
    assert not is_broken(send, asked(0, 0.0), YARD, STRICT)


class _Forbidden:
    """Sends to where it must not, and to where it may once that failed."""

    def hear(self, status: PoolStatus, now: float) -> None:
        pass

    def arrive(self, profile: Profile, now: float) -> Send | Unserved | None:
        pool = "premium-us" if profile.attempt == 1 else "premium-eu"
        return Send(profile, OPTIONS.by_pool[pool][0], "direct")

    def settle(self, profile: Profile, used: Amounts) -> None:
        pass

    def due_at(self) -> float:
        return float("inf")

    def release(self, now: float) -> Iterator[Send | Unserved]:
        yield from ()


def test_a_try_that_failed_counts_too() -> None:
    outage = Outage(pool="premium-us", from_s=0.0, to_s=100.0)
    arrivals = [asked(0, 1.0, constraints={"regions": ["eu-west"]}), asked(1, 2.0)]
    setting = Setting(arrivals, YARD, STRICT, Reality(outages=(outage,)))
    scored = run_one("forbidden", setting, OPTIONS, _Forbidden())
    assert [outcome.pool for outcome in scored.run.outcomes] == ["premium-eu", "premium-eu"]
    assert scored.scores["constraint_violations"] == 1


def no_us(profile: Profile, option: Option) -> str | None:
    return "abroad" if option.pool == "premium-us" else None


def _ruled() -> Any:
    rule = Extension("home", "home 1", refuse=no_us)
    return STRICT.model_copy(update={"extensions": ("home",)}).bind((rule,))


WISHES: list[dict[str, Any]] = [
    {"constraints": {"regions": ["us-east"]}},
    {"constraints": {"data_class": "regulated"}},
    {"constraints": {"exclude_pools": ["premium-eu"]}},
    {"constraints": {"max_cost_usd": 1e-9}},
    {"constraints": {"max_cost_usd": 1.0}},
    {"constraints": {"precisions": ["int8"]}, "task": "summarization"},
    {"constraints": {"labels": {"cooling": "air"}}},
    {"task": "summarization"},
]


def every_policy(policy: Any) -> Iterator[ScoredRun]:
    arrivals = [asked(n, n * 0.7, **wish) for n, wish in enumerate(WISHES * 4)]
    reality = Reality(failure_rate=0.2, seed=3)
    return runs(Setting(arrivals, YARD, policy, reality), with_baselines=True)


def test_every_policy_keeps_the_constraints_of_requests() -> None:
    for each in every_policy(STRICT):
        assert each.scores["constraint_violations"] == 0, each.name
        refused = {o.row % len(WISHES) for o in each.run.outcomes if o.status == "rejected"}
        # Who would pay nothing, and who wants what nobody has; the premium pools have no int8.
        assert refused == {3, 6} | ({5} if each.name == "shunter_premium" else set()), each.name


def test_every_policy_keeps_what_extensions_refuse() -> None:
    for each in every_policy(_ruled()):
        pools = {send.option.pool for o in each.run.outcomes for send in o.sends}
        assert "premium-us" not in pools, each.name
        assert each.scores["constraint_violations"] == 0


def _any_profile() -> Profile:
    return replay(rows=1)[0].outcomes[0].profile
