"""The machine and the libraries that figures belong to."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

from iog.cores import allowed
from iog_export.installed import PACKAGES, versions

CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd")
LIBRARIES = (*PACKAGES, "torch", "grpcio")


def environment() -> dict[str, Any]:
    """The time, CPU, cores that this process may use, memory, system, library versions, and the load before the run."""
    lines = CPU_INFO.read_text(errors="replace").splitlines() if CPU_INFO.exists() else []
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": allowed(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": versions(LIBRARIES),
        "load_before": load(),
    }


def load() -> float:
    """Runnable processes, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)
