"""The jars of Apache Kafka: fetched once from a Maven repository, kept between runs.

They are executed here, and a repository or another program might replace them; so each is checked
against its digest in ``PINS`` when it is fetched and before each start.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

KAFKA_VERSION = os.environ.get("SHUNTER_KAFKA_VERSION") or "4.3.1"
COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
# As `sha256sum` writes them, and checks them in the directory of the jars.
PINS = Path(__file__).with_name(f"kafka-{KAFKA_VERSION}.sha256")


class BrokerError(Exception):
    """The embedded broker is unavailable or can't continue; the message says what to do."""


def default_cache_dir() -> Path:
    """Return ``SHUNTER_CACHE_DIR``, or ``shunter`` in the user's cache directory."""
    chosen = os.environ.get("SHUNTER_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shunter"


def kafka_jars(
    *,
    cache_dir: Path | None = None,
    repositories: Mapping[str, str] | None = None,
    announce: Callable[[str], object] = logger.info,
) -> list[Path]:
    """Return the jars of Kafka's class path, fetched if the cache lacks them, and checked.

    The check reads all of them: 0.04 s.

    Args:
        cache_dir: where they are kept; ``default_cache_dir()`` when not given.
        repositories: Maven repositories by name, beside those of jgo's own configuration;
            the name ``central`` replaces Maven Central.
        announce: called once before a fetch, which takes about 10 s on a fast line.

    Raises:
        BrokerError: they aren't cached and can't be fetched, or differ from ``PINS``; or there
            are no pins of this version.
    """
    pins = _pins()
    cache = cache_dir or default_cache_dir()
    jar_dir = cache / f"kafka-{KAFKA_VERSION}"
    if not jar_dir.is_dir():
        try:
            with _locked(cache):
                if not jar_dir.is_dir():
                    announce(f"Fetching Apache Kafka {KAFKA_VERSION} (44 MB, once) into {jar_dir}")
                    _fetch(jar_dir, pins, repositories or {})
        # jgo lets through what its HTTP and XML parsers raise: a truncated POM is a SyntaxError.
        except (RuntimeError, ValueError, OSError, SyntaxError) as error:
            raise BrokerError(_cannot_fetch(jar_dir, error)) from error
    _check(jar_dir, pins)
    return sorted(jar_dir.glob("*.jar"))


def _pins() -> dict[str, str]:
    """Return the SHA-256 of each jar, by its name.

    Raises:
        BrokerError: there are none of this version.
    """
    try:
        lines = PINS.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        known = sorted(p.stem.removeprefix("kafka-") for p in PINS.parent.glob("kafka-*.sha256"))
        raise BrokerError(
            f"SHUNTER_KAFKA_VERSION is {KAFKA_VERSION}, whose jars nobody has pinned;"
            f" choose one of {', '.join(known)}"
        ) from None
    return {name: digest for digest, name in (line.split() for line in lines)}


def _check(jar_dir: Path, pins: Mapping[str, str]) -> None:
    """Check that a directory has exactly these jars as they are pinned.

    Raises:
        BrokerError: a jar differs; the message names the file and both digests.
    """
    found = {jar.name: jar for jar in jar_dir.glob("*.jar")}
    for name in sorted({*pins, *found}):
        wanted = pins.get(name, "none, since Kafka has no such jar")
        digest = _digest(found[name]) if name in found else "none, since it is missing"
        if digest != wanted:
            raise BrokerError(
                f"{jar_dir / name} is not as Apache Kafka {KAFKA_VERSION} has it: wanted SHA-256"
                f" {wanted}; found {digest}. Delete {jar_dir} to have all jars fetched again"
            )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cannot_fetch(jar_dir: Path, error: Exception) -> str:
    return (
        f"Apache Kafka {KAFKA_VERSION} is not in {jar_dir} and could not be fetched: {error}. "
        "Connect this machine to the network once, name a reachable Maven mirror as `central` "
        "under [repositories] in jgo's configuration file, or point SHUNTER_BOOTSTRAP_SERVERS "
        "at a Kafka that already runs"
    )


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Allow one process to fetch at a time; the others then find its result."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(jar_dir: Path, pins: Mapping[str, str], repositories: Mapping[str, str]) -> None:
    """Resolve ``COORDINATES`` and put all of their jars in ``jar_dir``, or none.

    ``jgo.build`` would do more: it sorts jars by module, and fetches a JDK of its own to do so.
    """
    try:
        import jgo  # noqa: PLC0415  an optional dependency, and 0.1 s that a cached start saves
        from jgo.config import GlobalSettings  # noqa: PLC0415
    except ImportError as error:
        raise BrokerError(missing_extra("jgo")) from error
    known = {**GlobalSettings.load().repositories, **repositories}
    with tempfile.TemporaryDirectory(dir=jar_dir.parent) as staging_dir:
        staging = Path(staging_dir) / "jars"
        staging.mkdir()
        for artifact in jgo.resolve(COORDINATES, repositories=known):
            jar = _download(artifact, pins)
            _link(jar, staging / jar.name)
        staging.rename(jar_dir)


def _download(artifact: Any, pins: Mapping[str, str]) -> Path:
    """Return the artifact's file in the local Maven repository, as it is pinned.

    An interrupted download leaves a truncated file that jgo then treats as complete.
    """
    jar = Path(artifact.resolve())
    wanted = pins.get(jar.name)
    if wanted is None:
        raise RuntimeError(f"{jar} is not one of the jars in {PINS}")
    if _digest(jar) != wanted:
        jar.unlink()
        jar = Path(artifact.resolve())
        found = _digest(jar)
        if found != wanted:
            raise RuntimeError(
                f"{jar} is not as pinned: wanted SHA-256 {wanted}, found {found}; does the"
                " repository answer with a web page, or with a jar of its own?"
            )
    return jar


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def missing_extra(package: str) -> str:
    """Return the message for a missing optional package of the ``broker`` extra."""
    return (
        f"the embedded broker needs the package {package}, which isn't installed: "
        "install `shunter[broker]`, or point SHUNTER_BOOTSTRAP_SERVERS at a Kafka that already runs"
    )
