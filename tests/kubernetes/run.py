"""The Kubernetes example on a real API server and its controllers, without a node.

python tests/kubernetes/run.py

Builds etcd, kube-apiserver, kube-controller-manager and kubectl from the Go modules that `go.mod`
beside this file pins, once (half an hour on two busy cores), and applies the example as operators
do: twice, with other settings, while the Job of the topics is there, and when it has ended.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from topics.embedded_broker.jars import default_cache_dir
from topics.embedded_broker.settings import free_port

HERE = Path(__file__).parent
EXAMPLE = ROOT / "deploy" / "kubernetes"
KEDA = ROOT / "tests" / "data" / "keda-2.21.0.json"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kubectl")
PACKAGES = (
    "go.etcd.io/etcd/server/v3",
    *(f"k8s.io/kubernetes/cmd/{name}" for name in PROGRAMS),
)
TOKEN = "of-the-run"  # noqa: S105 - of a server on this machine that lives for minutes
WORKLOADS = ("gateway", "router", "topics", "worker-cpu-eu", "worker-premium-eu")
BUDGET = "poddisruptionbudget.policy/"
SETTING, OTHERWISE = "SHUNTER_DRAIN_S_MAX=60", "SHUNTER_DRAIN_S_MAX=45"
READY_S_MAX = 90.0
# The Job is deleted a minute after its end.
DELETED_S_MAX = 120.0


def built() -> Path:
    """Return the directory of the programs, made where the cache lacks them."""
    programs = default_cache_dir() / "kubernetes"
    programs.mkdir(parents=True, exist_ok=True)
    command = ["go", "build", "-trimpath", "-o", f"{programs}/", *PACKAGES]
    subprocess.run(["nice", "-n", "19", *command], cwd=HERE, check=True)
    return programs


@contextmanager
def running(program: Path, log: Path, **flags: object) -> Iterator[None]:
    """Run a program until the block ends."""
    told = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    with log.open("wb") as written:
        process = subprocess.Popen([program, *told], stdout=written, stderr=written)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def until(holds: Callable[[], bool], what: str, seconds: float = READY_S_MAX) -> None:
    """Wait until something holds that a server or a controller does by itself."""
    give_up_at = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.5)


class Cluster:
    """An API server with its controllers, and the client of an operator."""

    def __init__(self, programs: Path, directory: Path) -> None:
        """Take the programs and a directory for data, logs and credentials."""
        self._programs = programs
        self._directory = directory
        self._kubeconfig = directory / "kubeconfig.json"
        self._processes = ExitStack()

    def __enter__(self) -> Self:
        at, peers, port = free_port(), free_port(), free_port()
        here, key = self._directory, self._directory / "accounts.pem"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        (here / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
        cluster = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
        self._kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": {"token": TOKEN}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        etcd, peer = f"http://127.0.0.1:{at}", f"http://127.0.0.1:{peers}"
        self._run(
            "server",
            data_dir=here / "etcd",
            listen_client_urls=etcd,
            advertise_client_urls=etcd,
            listen_peer_urls=peer,
            initial_advertise_peer_urls=peer,
            initial_cluster=f"default={peer}",
        )
        self._run(
            "kube-apiserver",
            etcd_servers=etcd,
            secure_port=port,
            bind_address="127.0.0.1",
            cert_dir=here / "certificates",
            token_auth_file=here / "tokens.csv",
            authorization_mode="RBAC",
            service_account_issuer="https://kubernetes.default.svc",
            service_account_key_file=key,
            service_account_signing_key_file=key,
            service_cluster_ip_range="10.0.0.0/24",
        )
        until(lambda: self.kubectl("get", "--raw", "/readyz").returncode == 0, "the server answers")
        self._run(
            "kube-controller-manager",
            kubeconfig=self._kubeconfig,
            service_account_private_key_file=key,
            leader_elect="false",
            secure_port=0,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    def _run(self, name: str, **flags: object) -> None:
        log = self._directory / f"{name}.log"
        self._processes.enter_context(running(self._programs / name, log, **flags))

    def kubectl(self, *arguments: object, told: str = "") -> "subprocess.CompletedProcess[str]":
        """Run the client in the example's namespace."""
        return subprocess.run(
            [
                *(self._programs / "kubectl", "--kubeconfig", self._kubeconfig),
                *("--namespace", "shunter", *arguments),
            ],
            input=told,
            capture_output=True,
            text=True,
            check=False,
        )

    def apply(self, directory: Path = EXAMPLE) -> list[str]:
        """Apply the example, where each warning is an error; return a line for each object."""
        done = self.kubectl("apply", "--warnings-as-errors", "--kustomize", directory)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def found(self, kind: str) -> dict[str, Any]:
        """Return the objects of a kind, by name."""
        told = json.loads(self.kubectl("get", kind, "--output", "json").stdout)
        return {each["metadata"]["name"]: each for each in told["items"]}

    def start_pods(self) -> None:
        """Wait until each workload has a pod, which the namespace's rules have let in."""
        until(lambda: all(self._has_pod(name) for name in WORKLOADS), "each workload has a pod")

    def _has_pod(self, name: str) -> bool:
        return any(pod.startswith(f"{name}-") for pod in self.found("pods"))


def changed(directory: Path) -> Path:
    """Return a copy of the example with one setting changed."""
    for path in EXAMPLE.iterdir():
        text = path.read_text().replace(SETTING, OTHERWISE)
        (directory / path.name).write_text(text)
    return directory


def definition() -> str:
    """Return the kind of KEDA that the example has, by KEDA's own schema."""
    names = {"kind": "ScaledObject", "plural": "scaledobjects", "singular": "scaledobject"}
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": json.loads(KEDA.read_bytes())["openAPIV3Schema"]},
    }
    spec = {"group": "keda.sh", "names": names, "scope": "Namespaced", "versions": [version]}
    return json.dumps(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "scaledobjects.keda.sh"},
            "spec": spec,
        }
    )


def finish_topics(cluster: Cluster) -> None:
    """Say, as a node would, that the pod of the topics has done its work."""
    (pod,) = (name for name in cluster.found("pods") if name.startswith("topics-"))
    status = {"status": {"phase": "Succeeded"}}
    done = cluster.kubectl(
        *("patch", "pod", pod, "--subresource=status", "--type=merge", "--patch"),
        json.dumps(status),
    )
    assert done.returncode == 0, done.stderr


def check(cluster: Cluster, other: Path) -> None:
    """Apply the example in the ways that operators do."""
    assert cluster.kubectl("create", "--filename", "-", told=definition()).returncode == 0
    until(lambda: cluster.kubectl("get", "scaledobjects").returncode == 0, "KEDA's kind is known")
    assert all(line.endswith(" created") for line in cluster.apply()), "all is new"
    cluster.start_pods()
    print("all objects are made, without a warning, and each workload has a pod")
    again = cluster.apply()
    # Of a budget `kubectl` sends the selector each time, and calls it configured.
    odd = [line for line in again if not line.endswith(" unchanged") and BUDGET not in line]
    assert not odd, odd
    budgets = cluster.found("poddisruptionbudgets").values()
    assert [each["metadata"]["generation"] for each in budgets] == [1, 1]
    print("a second time changes nothing")
    refused = cluster.kubectl("apply", "--kustomize", other)
    assert refused.returncode == 1, refused.stdout
    assert [line.partition(":")[0] for line in refused.stderr.splitlines()] == [
        'The Job "topics" is invalid'
    ], refused.stderr
    print("with other settings all is changed but the Job, which is still there")
    finish_topics(cluster)
    until(lambda: "topics" not in cluster.found("jobs"), "the ended Job is gone", DELETED_S_MAX)
    assert "job.batch/topics created" in cluster.apply(other)
    print("a minute after its end it is gone, and made anew")
    assert cluster.kubectl("delete", "job", "topics", "--ignore-not-found").returncode == 0
    assert "job.batch/topics created" in cluster.apply()
    print("deleted first, it is made anew at once")


def main() -> None:
    """Build what is missing, run it, and apply the example."""
    programs = built()
    with tempfile.TemporaryDirectory(prefix="shunter-kubernetes-") as told:
        directory = Path(told)
        (directory / "other").mkdir()
        with Cluster(programs, directory) as cluster:
            check(cluster, changed(directory / "other"))


if __name__ == "__main__":
    main()
