"""The rights of each role suffice, each is needed, and none opens what it should not."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError
from client_commands import shunter
from forked import ran
from ledger_cases import rows_of, until_the_ledger_follows
from running_system import FLEET, ROOT, System, chat, eventually, records_of
from tls_broker import SecuredKafka, secured_kafka, unused, user_of

from streams.engine.log import Partition
from streams.kafka.open_transactions import find_open
from topics import Catalogue, Profile, Settings, decode, encode
from topics.admin import provisioning
from topics.admin.acls import roles
from topics.embedded_broker.settings import free_port
from topics.records import headers as h
from topics.records.money import BudgetState

PREFIX = "yard"
POOLS = tuple(FLEET["pools"])
# Both pools have both lanes here, so that a router writes all of them.
BOTH_LANES = {
    "pools": {
        name: {key: value for key, value in pool.items() if key != "lanes"}
        for name, pool in FLEET["pools"].items()
    }
}
CATALOGUE = Catalogue(Settings(topic_prefix=PREFIX))
PAGE_PORT = free_port()
# Its requests go by the accounts, where workers tell what they used.
COUNTED = {"counted": {"budgets": [{"window_s": 86_400, "requests": 1000}]}}
ROLES = {role.label: role for role in roles(CATALOGUE, POOLS)}


def user(label: str) -> str:
    return user_of(PREFIX, ROLES[label])


class TestCommand:
    async def test_json_has_every_role_with_its_grants(self) -> None:
        told = json.loads((await shunter("topics", "acls", "--json")).stdout)
        assert [each["role"] for each in told[:3] + told[-4:]] == [
            *("client", "gateway", "router", "auditor", "custodian", "steward", "operator")
        ]
        worker = next(each for each in told if each["pool"] == "silicon-us")
        assert worker["principal"] == "User:shunter-worker-silicon-us"
        assert {
            "resource": "Topic",
            "name": "inference.pool.silicon-us.direct",
            "pattern": "Literal",
            "operation": "Read",
            "why": "take its work",
        } in worker["grants"]

    async def test_commands_are_ready_to_run(self) -> None:
        arguments = ("--role", "router", "--principal", "User:Bob's", "--commands")
        lines = (await shunter("topics", "acls", *arguments)).stdout.splitlines()
        assert lines[0] == "# router"
        (held,) = [line for line in lines if line.endswith("--topic inference.held")]
        assert "--operation Read --operation Write" in held
        assert "--allow-principal 'User:Bob'\"'\"'s'" in held
        assert any(
            line.endswith(
                "--transactional-id inference.batcher-inference.held-"
                " --resource-pattern-type prefixed"
            )
            for line in lines
        )

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (("--principal", "User:bob"), "--principal is for one role"),
            (("--pool", "nowhere"), "the fleet has no pool 'nowhere'"),
            (("--role", "client", "--pool", "silicon-us"), "--pool is for workers"),
        ],
    )
    async def test_what_makes_no_sense_is_told(self, arguments: tuple[str, ...], told: str) -> None:
        outcome = await shunter("topics", "acls", *arguments)
        assert outcome.exit_code == 1
        assert told in str(outcome.exception)

    def test_no_pool_reaches_what_is_another_s_though_its_name_begins_alike(self) -> None:
        short, long = (r for r in roles(CATALOGUE, ["a", "a-b"]) if r.name == "worker")
        prefixes = [g.name for g in short.grants if g.pattern == "Prefixed"]
        names = [g.name for g in long.grants]
        assert len(prefixes) == 2
        assert not any(name.startswith(prefix) for prefix in prefixes for name in names)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    with secured_kafka(tmp_path_factory.mktemp("secured")) as kafka:
        kafka.add_users(
            {user(label): role.grants for label, role in ROLES.items()} | {"nobody": []}
        )
        yield kafka


def command(kafka: SecuredKafka, who: str, *args: object, password: str | None = None) -> Any:
    """Run a command as a user, to its end."""
    env = {"SHUNTER_TOPIC_PREFIX": PREFIX} | kafka.env(who, password)
    return ran(*args, env=env, timeout_s=90)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    secured: SecuredKafka, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    await provisioning.apply(secured.settings(user("operator"), PREFIX), POOLS)
    env = {pool: secured.env(user(f"worker {pool}")) for pool in POOLS}
    # A window so short that seen ids are written down of a few requests.
    router = {"SHUNTER_WEB_PORT": str(PAGE_PORT), "SHUNTER_DUPLICATE_WINDOW_RECORDS": "4"}
    router |= {"SHUNTER_QUOTE_SECRET": "between routers"}
    system = System(
        secured.for_tests,
        PREFIX,
        tmp_path_factory.mktemp("system"),
        fleet=BOTH_LANES,
        # Company is expected, so that the first of a batch waits as the others do.
        policy_changes={
            "tenants": COUNTED,
            "windows": {"margin_s": 0.1, "prior_rate_per_s": 10.0},
        },
        env_of={"router": secured.env(user("router")) | router} | env,
    )
    async with system:
        system.start_all()
        yield system


def missed(kafka: SecuredKafka, label: str) -> list[str]:
    """What a user of this role was denied."""
    heartbeats = [
        ("DescribeProducers", f"Topic:LITERAL:{PREFIX}.{name}")
        for name in ("pool-status", "evidence-keys")
    ]
    return [
        f"{d.operation} {d.resource} for {d.request}"
        for d in kafka.decisions(user(label))
        if d.verdict == "Denied"
        # Heartbeats are in no transaction, so it isn't asked what is open on their topics.
        and (d.request, d.resource) not in heartbeats
    ]


@pytest.mark.kafka
@pytest.mark.asyncio(loop_scope="module")
class TestTheWholeSystemWithTheseRights:
    async def test_requests_complete_directly_and_in_batches(
        self, secured: SecuredKafka, system: System, tmp_path: Path
    ) -> None:
        await all_pools_up(system)
        # The router, which may take longer to start, has ended one.
        await system.publish(chat("first", constraints={"regions": ["moon"]}))
        await system.wait_for_results(["first"])
        streamed = chat("any")["body"] | {"stream": True}
        # An LPDDR board has 8-bit integers alone, which the packaged policy's chat has to ask for.
        direct = [
            chat(f"now-{p}", constraints={"pools": [p], "precisions": ["any"]}, body=streamed)
            for p in POOLS
        ]
        batch = [
            chat(f"doc-{p}-{i}", task="summarization", constraints={"pools": [p]})
            for p in POOLS
            for i in range(4)
        ]
        nowhere = chat("nowhere", constraints={"regions": ["moon"]})
        lines = b"\n".join(orjson.dumps(each) for each in [*direct, *batch, nowhere])
        (tmp_path / "requests.jsonl").write_bytes(lines)
        outcome = await asyncio.to_thread(
            *(command, secured, user("client"), "submit", tmp_path / "requests.jsonl"),
            *("--wait", "--timeout", "60", "--json"),
        )
        assert outcome.returncode == 3, outcome.stderr + system.logs()
        counts = json.loads(outcome.stdout)
        assert (counts["completed"], counts["rejected"]) == (10, 1), outcome.stdout + system.logs()
        await system.wait_for_results([each["id"] for each in [*direct, *batch]])
        placements = {name: results[0]["placement"] for name, results in system.results.items()}
        assert {placements[each["id"]]["path"] for each in direct} == {"direct"}
        assert {placements[each["id"]]["path"] for each in batch} == {"batch"}

    async def test_a_client_asks_what_it_would_cost(
        self, secured: SecuredKafka, system: System, tmp_path: Path
    ) -> None:
        patient = {"ttft_ms": 60_000, "tpot_ms": 10_000}
        (tmp_path / "asked.jsonl").write_bytes(orjson.dumps(chat("asked", slo=patient)))
        outcome = await asyncio.to_thread(
            *(command, secured, user("client"), "quote", tmp_path / "asked.jsonl"),
            *("--by", "1h", "--json"),
        )
        assert outcome.returncode == 0, outcome.stderr + system.logs()
        assert all(set(line["quote_ids"]) == {"asked"} for line in json.loads(outcome.stdout))

    async def test_a_client_cancels(self, secured: SecuredKafka, system: System) -> None:
        outcome = await asyncio.to_thread(
            command, secured, user("client"), "cancel", "nothing-of-that-name"
        )
        assert outcome.returncode == 0, outcome.stderr

    async def test_a_steward_applies_what_is_in_force(
        self, secured: SecuredKafka, system: System
    ) -> None:
        files = [f"--{kind}={system.directory / kind}.yaml" for kind in ("policy", "fleet")]
        for arguments in (("apply", *files), ("history",)):
            outcome = await asyncio.to_thread(
                command, secured, user("steward"), "policy", *arguments
            )
            assert outcome.returncode == 0, outcome.stderr
        assert "apply" in outcome.stdout

    async def test_an_auditor_tells_the_story(
        self, secured: SecuredKafka, system: System, tmp_path: Path
    ) -> None:
        body = tmp_path / "body.json"
        body.write_bytes(orjson.dumps(chat("any")["body"] | {"stream": True}))
        for arguments, told in (
            (("audit", "show", f"now-{POOLS[0]}"), "executed"),
            (("results", "--request", f"now-{POOLS[0]}"), "completed"),
            (("audit", "verify"), "verified, so far as it was checked"),
            # By the versions that its evidence names, which only the topic has.
            (("audit", "replay", f"now-{POOLS[0]}"), "the same again"),
            (("audit", "match", f"now-{POOLS[0]}", body), "it is the body of the request"),
        ):
            outcome = await asyncio.to_thread(command, secured, user("auditor"), *arguments)
            assert outcome.returncode == 0, outcome.stderr
            assert told in outcome.stdout
            assert "the right DescribeConfigs" not in outcome.stdout

    async def test_a_viewer_watches(self, secured: SecuredKafka, system: System) -> None:
        outcome = await asyncio.to_thread(
            command, secured, user("viewer"), "top", "--once", "--json", "--window", "600"
        )
        assert outcome.returncode == 0, outcome.stderr
        shown = json.loads(outcome.stdout)
        assert (shown["ended"]["statuses"]["completed"], shown["unreadable"]) == (10, 0)

    async def test_the_page_needs_no_more_than_the_router_has(self, system: System) -> None:
        def ask(path: str) -> Any:
            url = f"http://127.0.0.1:{PAGE_PORT}{path}"
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.loads(response.read())

        async def is_current() -> bool:
            shown = await asyncio.to_thread(ask, "/view.json")
            return bool(shown["is_current"] and shown["silent_s"] is not None)

        await eventually(is_current, "the view is current", 30)
        story = (await asyncio.to_thread(ask, f"/story.json?id=now-{POOLS[0]}"))["story"]
        assert [step["step"] for step in story["steps"]] == ["placed", "executed"]

    async def test_an_auditor_follows_the_live_ledger(
        self, secured: SecuredKafka, system: System, tmp_path: Path
    ) -> None:
        port, log = free_port(), tmp_path / "ledger.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(  # noqa: ASYNC220  starts at once
                [sys.executable, "-m", "shunter", "ledger", "--follow", "--port", str(port)],
                cwd=ROOT,
                env=os.environ | {"SHUNTER_TOPIC_PREFIX": PREFIX} | secured.env(user("auditor")),
                stderr=file,
            )
        try:
            live = f"http://127.0.0.1:{port}/ledger"
            try:
                await until_the_ledger_follows(live)
                await system.publish(chat("turned-away", constraints={"regions": ["moon"]}))

                async def is_counted() -> bool:
                    return bool(await rows_of(live))

                await eventually(is_counted, "what ends is counted", 30)
            except AssertionError as error:
                raise AssertionError(f"{error} {log.read_text()[-2000:]}") from error
        finally:
            process.terminate()
            assert await asyncio.to_thread(process.wait, 90) == 0

    async def test_a_custodian_forgets_and_revokes(
        self, secured: SecuredKafka, system: System
    ) -> None:
        custodian = user("custodian")
        listed = await asyncio.to_thread(command, secured, custodian, "evidence", "keys", "--json")
        key = json.loads(listed.stdout)[0]["statement"]["key"]
        for arguments in (
            ("evidence", "revoke", key, "--reason", "a test", "--at", "4102444800"),
            ("audit", "forget", "default", "--yes"),
        ):
            outcome = await asyncio.to_thread(command, secured, custodian, *arguments)
            assert outcome.returncode == 0, outcome.stderr

    async def test_what_goes_wrong_finds_its_way_too(self, system: System) -> None:
        """Dead letters of router and worker, and another try at another pool."""
        await system.publish(b"not a request")
        for pool in POOLS:
            lane = system.catalogue.pool_lane(pool, "direct")
            (record,) = await records_of(system, lane)
            await system.producer.send_and_wait(lane, b"no placement", partition=0)
            profile = replace(
                h.read(record.headers, h.PROFILE, Profile),
                id=f"huge-{pool}",
                input_tokens=10**8,
                deadline=time.time() + 600,
            )
            headers = h.replaced(record.headers, {h.PROFILE: encode(profile)})
            await system.producer.send_and_wait(lane, record.value, headers=headers, partition=0)

        async def all_there() -> bool:
            await system.read()
            fell_back = {e["request_id"] for e in system.evidence if e["step"] == "fell_back"}
            return len(system.dead_letters) >= 3 and len(fell_back) == 2

        try:
            await eventually(all_there, "dead letters and fallbacks")
        except AssertionError as error:
            raise AssertionError(f"{error} {system.logs()}") from error

    async def test_what_a_tenant_with_a_budget_used_is_counted(self, system: System) -> None:
        names = [f"counted-{pool}" for pool in POOLS]
        for name, pool in zip(names, POOLS, strict=True):
            where = {"pools": [pool], "precisions": ["any"]}
            await system.publish(chat(name, tenant="counted", constraints=where))
        await system.wait_for_results(names)
        assert {system.result(name)["status"] for name in names} == {"completed"}

        async def is_settled() -> bool:
            states = [r.value for r in await records_of(system, system.catalogue.budgets)]
            state = decode(BudgetState, states[-1]) if states else None
            return state is not None and state.used.requests == 2 and not state.reserved.requests

        await eventually(is_settled, "what they used is counted")

    async def test_a_client_follows_an_answer_as_it_comes(
        self, secured: SecuredKafka, system: System, tmp_path: Path
    ) -> None:
        streamed = chat("any")["body"] | {"stream": True}
        (tmp_path / "streamed.jsonl").write_bytes(orjson.dumps(chat("streamed", body=streamed)))
        outcome = await asyncio.to_thread(
            *(command, secured, user("client"), "submit", tmp_path / "streamed.jsonl"),
            *("--follow", "--timeout", "60"),
        )
        assert outcome.returncode == 0, outcome.stderr + system.logs()
        assert "[streamed]" in outcome.stdout

    async def test_a_gateway_answers_and_cancels(
        self, secured: SecuredKafka, system: System, tmp_path: Path
    ) -> None:
        port = free_port()
        log = tmp_path / "gateway.log"
        with log.open("wb") as file:
            process = subprocess.Popen(  # noqa: ASYNC220  starts at once
                [sys.executable, "-m", "shunter", "gateway", "--port", str(port)],
                cwd=ROOT,
                env=os.environ | {"SHUNTER_TOPIC_PREFIX": PREFIX} | secured.env(user("gateway")),
                stderr=file,
            )
        url, head = f"http://127.0.0.1:{port}", {"Authorization": "Bearer any"}
        body = chat("any")["body"]
        waits = body | {"shunter": {"task": "summarization", "deadline": "1h"}}

        async def is_ready() -> bool:
            try:
                async with session.get(f"{url}/readyz") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        async def is_cancelled() -> bool:
            await system.read()
            return any(e["step"] == "cancel_requested" for e in system.evidence)

        try:
            async with aiohttp.ClientSession(headers=head) as session:
                await eventually(is_ready, "a gateway that answers", 30)
                keyed = {"Idempotency-Key": "once"}
                path = f"{url}/v1/chat/completions"
                async with session.post(path, json=body, headers=keyed) as answer:
                    assert answer.status == 200, await answer.text()
                with contextlib.suppress(TimeoutError):
                    # It waits for company in the hold, and the client leaves.
                    await session.post(path, json=waits, timeout=aiohttp.ClientTimeout(total=0.5))
                await eventually(is_cancelled, "a cancellation", 30)
        except AssertionError as error:
            raise AssertionError(f"{error} {log.read_text()[-2000:]}") from error
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 90)

    async def test_a_viewer_asks_for_drift(self, secured: SecuredKafka, system: System) -> None:
        outcome = await asyncio.to_thread(
            command, secured, user("viewer"), "quality", "report", "--json"
        )
        assert outcome.returncode == 0, outcome.stderr

    async def test_a_router_learns_which_producer_blocks_a_partition_and_no_clients_name(
        self, secured: SecuredKafka, system: System
    ) -> None:
        # Not the router's own user: of that each refusal counts below.
        secured.add_users({"watcher": ROLES["router"].grants})
        client = AIOKafkaProducer(
            bootstrap_servers=secured.for_tests, transactional_id="a client's secret"
        )
        await client.start()
        await client.begin_transaction()
        sent = await client.send_and_wait(CATALOGUE.requests, b"{}", partition=0)
        where = Partition(CATALOGUE.requests, 0)
        found = await find_open(secured.settings("watcher", PREFIX), [where])
        await client.abort_transaction()
        await client.stop()
        assert found[where].start_offset == sent.offset
        assert found[where].transactional_id is None
        assert found[where].timeout_s_max is None
        assert not found[where].hangs

    @pytest.mark.parametrize("label", ROLES)
    async def test_nothing_was_missed_and_each_right_was_used(
        self, secured: SecuredKafka, system: System, label: str
    ) -> None:
        assert missed(secured, label) == []
        decisions = secured.decisions(user(label))
        # A worker makes a salt only where it has not read yet what a router made; rarely, that is.
        salts = [g for g in ROLES[label].grants if g.name == CATALOGUE.evidence_salts]
        rare = [g for g in salts if g.operation == "Write" and label.startswith("worker")]
        # Only who takes over a batch looks which of its lines were published.
        rare += [g for g in ROLES[label].grants if "lines of a batch" in g.why]
        # Nothing is watched here: no request runs twice, and there is nothing to read of it.
        second = {CATALOGUE.quality, CATALOGUE.comparisons}
        rare += [g for g in ROLES[label].grants if g.name in second]
        assert [g for g in unused(decisions, ROLES[label].grants) if g not in rare] == []
        looked = {d.resource for d in decisions if d.request == "DescribeProducers"}
        written = {
            f"Topic:LITERAL:{g.name}"
            for g in ROLES[label].grants
            if g.operation == "Read" and "dying" in g.why
        }
        assert written <= looked


async def all_pools_up(system: System) -> None:
    """Wait until each pool has reported."""
    status = TopicPartition(system.catalogue.pool_status, 0)

    async def reported() -> bool:
        keys = {record.key for record in await records_of(system, status.topic)}
        return {f"{p}/{p}-0".encode() for p in POOLS} <= keys

    try:
        await eventually(reported, "each pool has reported", 60)
    except AssertionError as error:
        raise AssertionError(f"{error} {system.logs()}") from error


@pytest.mark.kafka
@pytest.mark.asyncio(loop_scope="module")
class TestWhatIsRefused:
    async def test_a_client_can_not_write_results(
        self, secured: SecuredKafka, system: System
    ) -> None:
        options = secured.settings(user("client"), PREFIX).kafka_options()
        lane = CATALOGUE.pool_lane(POOLS[0], "direct")
        async with AIOKafkaProducer(**options) as producer:
            await producer.send_and_wait(CATALOGUE.requests, b"may be written")
            for topic in (CATALOGUE.results, CATALOGUE.evidence, lane):
                with pytest.raises(TopicAuthorizationFailedError):
                    await producer.send_and_wait(topic, b"forged")

    async def test_a_worker_can_not_read_the_lane_of_another_pool(
        self, secured: SecuredKafka, system: System
    ) -> None:
        ours, theirs = (TopicPartition(CATALOGUE.pool_lane(p, "direct"), 0) for p in POOLS)
        options = secured.settings(user(f"worker {POOLS[0]}"), PREFIX).kafka_options()

        async def read(partition: TopicPartition) -> dict[TopicPartition, list[Any]]:
            consumer = AIOKafkaConsumer(**options, auto_offset_reset="earliest")
            consumer.assign([partition])
            try:
                await consumer.start()
                return await consumer.getmany(partition, timeout_ms=5000)
            finally:
                await consumer.stop()

        assert await read(ours)
        with pytest.raises(TopicAuthorizationFailedError, match=theirs.topic):
            await read(theirs)

    @pytest.mark.parametrize("label", ["router", f"worker {POOLS[0]}", "client"])
    async def test_a_wrong_password_is_one_error_and_one_try(
        self, secured: SecuredKafka, system: System, tmp_path: Path, label: str
    ) -> None:
        began = time.monotonic()
        tries, guess = failed_logins(secured), "guessed"
        outcome = await asyncio.to_thread(
            *(command, secured, user(label), *process(label, system, tmp_path)), password=guess
        )
        assert outcome.returncode == 1
        assert time.monotonic() - began < 15
        (line,) = outcome.stderr.splitlines()
        assert f"refuses SHUNTER_SASL_USERNAME={user(label)}" in line
        assert "SHUNTER_SASL_PASSWORD" in line
        assert guess not in line
        assert failed_logins(secured) - tries == 1

    @pytest.mark.parametrize("label", ["router", f"worker {POOLS[0]}", "client"])
    async def test_who_has_no_rights_is_told_where_they_are_listed(
        self, secured: SecuredKafka, system: System, tmp_path: Path, label: str
    ) -> None:
        outcome = await asyncio.to_thread(
            command, secured, "nobody", *process(label, system, tmp_path)
        )
        assert outcome.returncode == 1
        (line,) = outcome.stderr.splitlines()
        assert "nobody has no right to it: `shunter topics acls`" in line

    @pytest.mark.parametrize(
        ("resource", "operation", "told"),
        [
            ("Group", "Read", "GroupAuthorizationFailed"),
            ("TransactionalId", "Write", "TransactionalIdAuthorizationFailed"),
        ],
    )
    async def test_a_missing_right_ends_the_process_and_is_named(
        self,
        secured: SecuredKafka,
        system: System,
        tmp_path: Path,
        resource: str,
        operation: str,
        told: str,
    ) -> None:
        label = f"worker {POOLS[0]}"
        lacking = f"{PREFIX}-without-{resource}"
        rest = [
            g for g in ROLES[label].grants if (g.resource, g.operation) != (resource, operation)
        ]
        secured.add_users({lacking: rest})
        outcome = await asyncio.to_thread(
            command, secured, lacking, *process(label, system, tmp_path), "--instance", resource
        )
        assert outcome.returncode == 1
        (line, *_) = [line for line in outcome.stderr.splitlines() if "CRITICAL" in line]
        assert "Kafka refuses a right" in line
        assert told in line
        assert "shunter topics acls" in line
        assert len(outcome.stderr.splitlines()) < 100


def process(label: str, system: System, tmp_path: Path) -> list[object]:
    """The command line of a role's process."""
    declared = ["--fleet", system.directory / "fleet.yaml"]
    if label == "client":
        requests = tmp_path / "requests.jsonl"
        requests.write_bytes(orjson.dumps(chat("r-1")))
        return ["submit", requests]
    return ["router", *declared] if label == "router" else ["worker", POOLS[0], *declared]


def failed_logins(kafka: SecuredKafka) -> int:
    return kafka.broker.log_path.read_text().count("Failed authentication")
