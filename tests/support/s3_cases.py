"""A server that speaks S3: moto's where ``S3_ENDPOINT`` names none."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator

import pytest

s3fs = pytest.importorskip("s3fs", reason="pip install 'shunter[dev]'")


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Provide the environment by which s3fs finds a server."""
    keys = {
        "AWS_ACCESS_KEY_ID": os.environ.get("AWS_ACCESS_KEY_ID", "key"),
        "AWS_SECRET_ACCESS_KEY": os.environ.get("AWS_SECRET_ACCESS_KEY", "secret"),
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    if "S3_ENDPOINT" in os.environ:
        yield keys | {"AWS_ENDPOINT_URL": os.environ["S3_ENDPOINT"]}
        return
    pytest.importorskip("moto.server", reason="pip install 'shunter[dev]', or set S3_ENDPOINT")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until, "moto's server doesn't answer"
                time.sleep(0.2)
        yield keys | {"AWS_ENDPOINT_URL": url}
    finally:
        server.terminate()
        server.wait(90)


def new_bucket() -> str:
    """Return the URL of an empty bucket at the server that the environment names."""
    name = f"shunter-{uuid.uuid4().hex}"
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"
