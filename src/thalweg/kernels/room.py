"""Whether there is room, in memory and on the disk, said before the work begins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from thalweg.errors import InputError

__all__ = ["available_memory", "require_disk", "require_memory", "sized"]


def available_memory() -> int:
    """Return the bytes that can be had without swapping; where the system does not say, all there are."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def require_memory(needed: int, what: str, *, hint: str) -> None:
    """Refuse what would not fit.

    Raises:
        InputError: when ``needed`` bytes are more than can be had.
    """
    there = available_memory()
    if needed > there:
        raise InputError(
            f"too little memory for {what}", expected=f"{sized(needed)} free", got=sized(there), hint=hint
        )


def require_disk(needed: int, folder: Path) -> None:
    """Refuse what would fill the disk.

    Raises:
        InputError: when ``needed`` bytes are more than are free where ``folder`` lies.
    """
    there = shutil.disk_usage(folder).free
    if needed > there:
        raise InputError(
            f"too little room on the disk of {str(folder)!r}",
            expected=f"{sized(needed)} free for the tiles that are missing",
            got=sized(there),
            hint="make room, or choose a folder on another disk",
        )


def sized(count: float) -> str:
    """Write a number of bytes for people: 20.0 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
