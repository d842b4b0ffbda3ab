"""Constraints and scorers in Python: kept on each path, and never stronger than what must hold."""

import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from decisions import decide_in, group_there, target_in
from hold_cases import hold, make_batcher
from policy_cases import NOW, a_policy, a_situation, bulk, profile, some_options
from stream_cases import Yard, drain, make_router
from typer.testing import CliRunner

from policies import (
    DeclarationError,
    Extension,
    Member,
    Option,
    Situation,
    allow_again,
    decide,
    inputs_of,
)
from shunter.cli import app
from streams.config.declarations import load_policy, published_policy, text_of
from topics import Declared, Fallback, PolicyLog, Profile, encode
from topics.records.policy_change import PolicyEntry

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "tenancy"


def ruled(*rules: Extension) -> Situation:
    """The situation of the policies' tests with extensions."""
    where = a_situation()
    named = where.policy.model_copy(update={"extensions": tuple(rule.name for rule in rules)})
    return replace(where, policy=named.bind(rules))


def no_premium(profile: Profile, option: Option) -> str | None:
    return "too_posh" if option.pool == "premium" else None


def dear_premium(profile: Profile, option: Option, price_usd: float) -> float:
    return price_usd * 1000 if option.pool == "premium" else price_usd


def refuse_board(profile: Profile, option: Option) -> str | None:
    return "slow" if option.pool == "board" else None


def fails(*_: object) -> Any:
    raise RuntimeError("broken")


def refusals(where: Situation, request: Profile) -> dict[str, set[str | None]]:
    found: dict[str, set[str | None]] = {}
    for each in decide_in(request, where, NOW).candidates:
        found.setdefault(each.pool, set()).add(each.refused)
    return found


def test_a_constraint_refuses_with_its_name_and_code() -> None:
    where = ruled(Extension("posh", "posh 1", refuse=no_premium))
    assert refusals(where, profile()) == {
        "premium": {"posh:too_posh"},
        "silicon": {None},
        "board": {"lane"},
    }
    only = decide_in(profile(pools=("premium",)), where, NOW)
    assert (only.action, only.reason) == ("reject", "no_pool")
    assert "premium is refused by the extension posh (too_posh)" in str(only.message)


def test_a_scorer_changes_what_is_chosen_and_nothing_else() -> None:
    plain = decide_in(profile(), a_situation(), NOW)
    assert plain.candidates[0].pool == "premium"
    scored = decide_in(profile(), ruled(Extension("s", "s 1", price=dear_premium)), NOW)
    assert scored.candidates[0].pool == "silicon"
    assert scored.reason == "preferred_by_extension"
    assert sorted(map(repr, scored.candidates)) == sorted(map(repr, plain.candidates))


def free(profile: Profile, option: Option, price_usd: float) -> float:
    return 0.0 if option.pool == "silicon" else price_usd


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"regions": ("eu-west",)}, "region"),
        ({"precisions": ("bf16",)}, "precision"),
        ({"exclude_pools": ("silicon",)}, "pool_excluded"),
        ({"max_cost_usd": 1e-9}, "max_cost"),
    ],
)
def test_hard_constraints_stay_hard_whatever_a_scorer_says(
    changes: dict[str, Any], code: str
) -> None:
    where = ruled(Extension("free", "free 1", price=free))
    assert decide_in(profile(), where, NOW).candidates[0].pool == "silicon"
    assert refusals(where, profile(**changes))["silicon"] == {code}
    waiting = [Member(bulk(**changes), "g", NOW, 0)]
    target = target_in(waiting, where, NOW)
    assert target is None or target.option.pool != "silicon"


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf"), "dear", None])
def test_what_is_no_price_refuses_rather_than_wins(price: Any) -> None:
    where = ruled(Extension("odd", "odd 1", price=lambda *_: price))
    assert refusals(where, profile())["silicon"] == {"odd:failed"}


@pytest.mark.parametrize("rule", [{"refuse": fails}, {"price": fails}])
def test_one_that_fails_refuses_and_stops_nothing(rule: dict[str, Callable[..., Any]]) -> None:
    where = ruled(Extension("bad", "bad 1", **rule))
    decision = decide_in(profile(), where, NOW)
    assert decision.action == "reject"
    assert refusals(where, profile())["premium"] == {"bad:failed"}


class Unspoken:
    def __str__(self) -> str:
        raise RuntimeError("broken")


@pytest.mark.parametrize("code", ["\ud800", "a\nb", "x" * 101, Unspoken()])
async def test_a_code_that_no_record_can_have_refuses_its_option_alone(code: Any) -> None:
    yard = Yard()
    odd = Extension("odd", "odd 1", refuse=lambda _, o: code if o.pool != "premium-eu" else None)
    yard.policy = yard.policy.model_copy(update={"extensions": ("odd",)}).bind([odd])
    yard.publish(id="a")
    await drain(await yard.run(make_router(yard)))
    (step,) = yard.evidence()
    assert step.placement is not None
    assert step.placement.pool == "premium-eu"
    assert {c.refused for c in step.candidates if c.pool == "premium-us"} == {"odd:failed"}


def test_a_policy_whose_extensions_are_not_loaded_decides_nothing() -> None:
    named = a_policy().model_copy(update={"extensions": ("posh",)})
    where = replace(a_situation(), policy=named)
    with pytest.raises(ValueError, match="posh were not loaded"):
        decide_in(profile(), where, NOW)


def of_acme(profile: Profile, option: Option) -> str | None:
    return "not_theirs" if profile.tenant == "a" and option.pool == "board" else None


def test_those_to_whom_it_says_other_things_share_no_batch() -> None:
    where = ruled(Extension("x", "x 1", refuse=of_acme))
    a, b = bulk(tenant="a"), bulk(tenant="b")
    assert group_there(a, where) != group_there(b, where)
    assert group_there(b, where) == group_there(bulk(tenant="c"), where)
    theirs = target_in([Member(a, "", NOW, 0)], where, NOW)
    others = target_in([Member(b, "", NOW, 0)], where, NOW)
    assert theirs is not None
    assert others is not None
    assert (theirs.option.pool, others.option.pool) != ("board", "premium")
    assert theirs.option.pool != "board"
    assert others.option.pool == "board"


def test_a_scorer_counts_at_release_too() -> None:
    def dear_board(profile: Profile, option: Option, price_usd: float) -> float:
        return price_usd * 1000 if option.pool == "board" else price_usd

    members = [Member(bulk(), "", NOW, 0)]
    plain = target_in(members, a_situation(), NOW)
    scored = target_in(members, ruled(Extension("d", "d 1", price=dear_board)), NOW)
    assert plain is not None
    assert scored is not None
    assert plain.option.pool == "board"
    assert scored.option.pool != "board"


def test_a_second_chance_heeds_it() -> None:
    rule = Extension("posh", "posh 1", refuse=no_premium)
    failed = profile(
        exclude_pools=("silicon",), fallbacks=(Fallback("silicon", "timeout"),), attempt=2
    )
    where = ruled(rule)
    assert allow_again(failed, some_options(), a_policy()).exclude_pools == ("silicon",)
    assert allow_again(failed, some_options(), where.policy).exclude_pools == ()


def test_a_decision_with_extensions_comes_out_the_same_again() -> None:
    where = ruled(Extension("s", "s 1", refuse_board, dear_premium))
    first = decide_in(profile(), where, NOW)
    inputs = inputs_of(profile(), where, NOW)
    assert decide(profile(), inputs, where.options, where.policy, NOW) == first


def test_the_version_is_that_of_the_policy_and_of_its_extensions() -> None:
    named = a_policy().model_copy(update={"extensions": ("x",)})
    one, two = (named.bind([Extension("x", version)]).version for version in ("x 1", "x 2"))
    assert len({a_policy().version, one, two}) == 3
    assert named.bind([Extension("x", "x 1")]).faster(2.0).rules[0].name == "x"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example of the documentation as `pip install --target` leaves it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    shutil.copy(EXAMPLE / "shunter_tenancy.py", tmp_path)
    info = tmp_path / f"shunter_tenancy-{project['version']}.dist-info"
    info.mkdir()
    name, version = project["name"], project["version"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "\n".join(f"{key} = {value}" for key, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("shunter_tenancy", None)


def explained(tmp_path: Path, **request: Any) -> Any:
    """What `shunter policy explain` says of a request, with the packaged fleet."""
    body = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "Which track?"}]}
    (tmp_path / "request.json").write_bytes(orjson.dumps({"id": "r", "body": body} | request))
    fleet = {
        "pools": {
            name: {
                "device": "h200",
                "count": 1,
                "region": "eu-west",
                "labels": labels,
                "serves": [
                    {
                        "model": "llama-3.1-8b",
                        "variant": "llama-3.1-8b-fp8",
                        "precision": "fp8",
                        "max_batch": 64,
                    }
                ],
                "usd_per_hour": usd,
            }
            for name, labels, usd in (
                ("acme-liquid", {"operator": "acme", "cooling": "liquid"}, 4.0),
                ("other-air", {"operator": "other", "cooling": "air"}, 3.5),
                ("other-liquid", {"operator": "other", "cooling": "liquid"}, 3.0),
            )
        }
    }
    (tmp_path / "fleet.yaml").write_bytes(orjson.dumps(fleet))
    files = ("--policy", str(EXAMPLE / "policy.yaml"), "--fleet", str(tmp_path / "fleet.yaml"))
    done = CliRunner().invoke(
        app, ["policy", "explain", str(tmp_path / "request.json"), *files, "--json"]
    )
    assert done.exit_code == 0, done.output
    return orjson.loads(done.stdout)


def test_the_example_is_found_by_its_entry_point_and_explained(
    installed: Path, tmp_path: Path
) -> None:
    told = explained(tmp_path)
    # A fifth off 3.5 is less than 3.0.
    assert told["candidates"][0]["pool"] == "other-air"
    assert told["reason"] == "preferred_by_extension"
    told = explained(tmp_path, tenant="acme")
    assert told["candidates"][0]["pool"] == "acme-liquid"
    refused = {c["pool"]: c["refused"] for c in told["candidates"]}
    assert refused["other-air"] == refused["other-liquid"] == "tenancy:another_operator"


async def test_the_example_decides_in_a_router_and_a_batcher(installed: Path) -> None:
    tenancy = load_policy(EXAMPLE / "policy.yaml")
    assert tenancy.extension_versions == {"tenancy": "shunter-tenancy 1.0.0"}
    yard = Yard()
    yard.policy = yard.policy.model_copy(update={"extensions": ("tenancy",)}).bind(tenancy.rules)
    yard.publish(id="theirs", tenant="acme")
    yard.publish(id="anyone")
    hold(yard, "held", tenant="acme")
    await drain(await yard.run(make_router(yard)))
    results = yard.results()
    # No pool of the yard has an operator, so that nothing may serve them.
    assert results.keys() == {"theirs"}
    assert results["theirs"].error is not None
    assert set((results["theirs"].error.details or {}).values()) == {
        "tenancy:another_operator",
        "lane",
    }
    (step,) = [e for e in yard.evidence() if e.request_id == "anyone"]
    assert (step.step, step.policy_version) == ("placed", yard.policy.version)
    yard.clock.at += 601
    yard.cluster.members.clear()
    await (await yard.run(make_batcher(yard))).step()
    assert not yard.evidence("released")
    assert yard.results()["held"].status == "rejected"


def problem_of(policy: Path) -> str:
    with pytest.raises(DeclarationError) as error:
        load_policy(policy)
    return str(error.value)


def test_what_is_not_installed_is_told_with_file_and_field() -> None:
    told = problem_of(EXAMPLE / "policy.yaml")
    assert "policy.yaml: extensions[0]: 'tenancy': no installed distribution" in told


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("raise RuntimeError('no such file')", "can't be loaded: RuntimeError: no such file"),
        ("x = 1", "has neither refuse(profile, option) nor price(profile, option, price_usd)"),
    ],
)
def test_what_can_not_be_loaded_is_told(installed: Path, module: str, told: str) -> None:
    (installed / "shunter_tenancy.py").write_text(module)
    assert told in problem_of(EXAMPLE / "policy.yaml")


def test_a_published_policy_wants_the_version_it_was_applied_with(installed: Path) -> None:
    applied = load_policy(EXAMPLE / "policy.yaml")
    said = PolicyLog()
    declared = Declared("policy", applied.version, text_of(applied), NOW, "a test")
    said.add(encode(PolicyEntry(declared=declared)))
    assert published_policy(said, applied.version).rules[0].name == "tenancy"
    info = next(installed.glob("*.dist-info"))
    text = (info / "METADATA").read_text()
    (info / "METADATA").write_text(text.replace("1.0.0", "1.0.1"))
    with pytest.raises(
        DeclarationError, match=r"shunter-tenancy 1\.0\.0 is wanted, and .* 1\.0\.1"
    ):
        published_policy(said, applied.version)
