"""Conventions of all commands: help that names variables, - for standard input, a version."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shunter.cli import COMMANDS, app, load
from topics import Settings

REQUEST = {"id": "r1", "body": {"model": "llama-3.1-8b", "messages": []}}
# The demo has a Kafka of its own; what reads an archive is not told of the one that is written.
OWN = {
    *(("demo", name) for name in ("bootstrap_servers", "topic_prefix", "fleet")),
    # An auditor reads another's log; the variable says where one is written.
    *((f"audit {name}", "public_log") for name in ("verify", "proof")),
    # These are what is to be in force, not what is.
    *(("policy apply", name) for name in ("policy", "fleet")),
}


def leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
    else:
        for each in inner:
            yield from leaves(f"{name} {each}", inner[each])


ALL = [leaf for name in COMMANDS for leaf in leaves(name, load(name))]


def invoke(*words: str, given: str | None = None) -> str:
    outcome = CliRunner().invoke(app, [*words], input=given, env={"COLUMNS": "300"})
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_help_names_the_variable_of_each_option(name: str, command: Any) -> None:
    shown = " ".join(invoke(*name.split(), "--help").split())
    for option in command.params:
        found = re.findall(r"env: (SHUNTER_\w+)", getattr(option, "help", None) or "")
        assert all(variable in shown for variable in found)
        is_setting = option.name in Settings.model_fields and option.name != "archive"
        assert found or not is_setting or (name, option.name) in OWN


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_names_each_command_and_installs_completion_at_the_top_alone(name: str) -> None:
    assert re.search(rf"^│ {name} ", invoke("--help"), re.MULTILINE)
    assert "--install-completion" not in invoke(name, "--help")


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert invoke("--version") == f"shunter {project['version']}\n"


def test_a_request_is_read_from_standard_input() -> None:
    told = json.loads(invoke("policy", "explain", "-", "--json", given=json.dumps(REQUEST)))
    assert told["action"] == "place"


def test_what_is_wrong_with_standard_input_is_said_of_it() -> None:
    outcome = CliRunner().invoke(app, ["policy", "explain", "-"], input="no JSON")
    assert outcome.exit_code == 1
    assert "standard input: " in str(outcome.exception)


def test_a_policy_and_configurations_are_read_from_standard_input() -> None:
    policy = Path("policies/defaults/policy.yaml").read_text(encoding="utf-8")
    packaged = json.loads(invoke("policy", "check", "--json"))
    assert (
        json.loads(invoke("policy", "check", "--policy", "-", "--json", given=policy)) == packaged
    )
    row = "h100,llama-3.1-8b,fp8,1,512,64,4\n"
    columns = "device,model,precision,tensor_parallel,input_tokens,output_tokens,concurrency\n"
    (found,) = json.loads(invoke("hardware", "predict", "-", "--json", given=columns + row))["rows"]
    assert "error" not in found, found


@pytest.mark.parametrize(
    "words",
    [
        "quote -",
        "policy backtest --trace -",
        "policy backtest --reality -",
        "plan --market -",
        "hardware list --catalogue -",
        "audit verify-proof -",
        "submit -",
    ],
)
def test_what_is_wrong_with_any_file_is_said_of_standard_input(words: str) -> None:
    outcome = CliRunner().invoke(app, words.split(), input="nothing: of use\n")
    assert outcome.exit_code in {1, 2}
    assert "standard input" in str(outcome.exception) + outcome.output


def test_each_option_says_what_it_is() -> None:
    options = [(name, each) for name, command in ALL for each in command.params]
    bare = [(n, e.opts) for n, e in options if e.param_type_name == "option" and not e.help]
    assert bare == []


def words_of(option: Any) -> list[str]:
    return [option.opts[0]] if option.is_flag else [option.opts[0], "1"]


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_an_option_of_one_value_is_not_taken_twice(name: str, command: Any) -> None:
    for option in command.params:
        is_switch = getattr(option, "is_flag", False) and not option.secondary_opts
        if option.param_type_name != "option" or option.multiple or is_switch:
            continue
        twice = 2 * words_of(option)
        outcome = CliRunner().invoke(app, [*name.split(), *twice], env={"COLUMNS": "300"})
        assert outcome.exit_code == 2
        assert option.opts[0] in outcome.output
        assert "is given 2 times: give it once" in outcome.output


def test_a_switch_may_be_given_twice_and_a_choice_of_two_may_not() -> None:
    assert json.loads(invoke("hardware", "list", "--json", "--json"))["devices"]
    both = ["policy", "backtest", "--bound", "--no-bound"]
    outcome = CliRunner().invoke(app, both, env={"COLUMNS": "300"})
    assert outcome.exit_code == 2
    assert "--bound/--no-bound is given 2 times: give it once" in outcome.output
