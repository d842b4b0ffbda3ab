"""Description of a worker's machine, for the evidence of what ran on it."""

import os
import platform
from pathlib import Path

from topics import Host

_PROC = Path("/proc")


def read_host(proc: Path = _PROC) -> Host:
    """Return the description of this machine; unknown values are None."""
    return Host(
        name=platform.node(),
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu=_field(proc / "cpuinfo", "model name"),
        cpus=os.cpu_count(),
        memory_bytes=_memory_bytes(proc),
        accelerators=_nvidia(proc),
    )


def _field(path: Path, name: str) -> str | None:
    """Return the first value of ``name: value`` lines."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in found if key.strip() == name), None)


def _memory_bytes(proc: Path) -> int | None:
    told = (_field(proc / "meminfo", "MemTotal") or "").split()
    return int(told[0]) * 1024 if len(told) == 2 and told[0].isdecimal() else None


def _nvidia(proc: Path) -> tuple[str, ...]:
    cards = sorted((proc / "driver/nvidia/gpus").glob("*/information"))
    models = (_field(card, "Model") for card in cards)
    return tuple(model for model in models if model is not None)
