"""``thalweg doctor``: versions, devices, what is available."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import click
from rich.console import Console

from thalweg.report.document import Document, Facts, Note
from thalweg.report.terminal import render
from thalweg.version import __version__

__all__ = ["command"]

_REQUIRED = ("torch", "numpy", "scipy", "scikit-learn", "rich", "click", "safetensors")


@click.command("doctor")
def command() -> None:
    """Show versions, devices and what is available."""
    import torch

    rows = [("thalweg", __version__), ("python", f"{platform.python_version()} on {platform.system()}")]
    rows += [(name, _version(name)) for name in _REQUIRED]
    rows += [
        ("processors", f"{os.cpu_count()}, {torch.get_num_threads()} torch threads"),
        ("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"),
        ("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"),
    ]
    render(
        Document("What Thalweg finds here", (Facts(tuple(rows)), Note(_advice()))), Console(highlight=False)
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _advice() -> str:
    missing = [name for name in _REQUIRED if _version(name) == "missing"]
    if missing:
        return f"Missing: {', '.join(missing)}. Install thalweg again to get them."
    return "Everything that is needed is here."
