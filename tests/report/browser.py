"""A page in headless Chromium: what it says on its console, what it asks for, how it looks."""

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
_QUIET = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update --disable-default-apps --hide-scrollbars"""


@dataclass(frozen=True)
class Visit:
    """What came of opening a page."""

    console: list[str]  # everything written to the console, refusals of the content-security policy included
    asked_for: list[str]  # addresses that the page, not the browser itself, asked the network for
    dom: str  # the page after it was loaded


def visit(page: Path, *flags: str) -> Visit:
    """Open a page, with no network to be reached, and return what happened."""
    with tempfile.TemporaryDirectory() as profile:
        log = Path(profile) / "network.json"
        command = [
            *(str(CHROMIUM), *_QUIET.split()),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0"),
            *(f"--log-net-log={log}", f"--user-data-dir={profile}/profile"),
            *("--virtual-time-budget=2000", *flags, "--dump-dom", page.as_uri()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        events = json.loads(log.read_text())["events"]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    asked = {
        event["params"]["url"]
        for event in events
        # What Chromium does on its own account has no origin.
        if event.get("params", {}).get("initiator", "not an origin") != "not an origin"
        and not event["params"]["url"].startswith("file:")
    }
    return Visit(console, sorted(asked), done.stdout)


def screenshot(page: Path, to: Path, *, width: int, dark: bool, height: int = 1600) -> None:
    """Write a picture of the page as it looks at ``width`` pixels."""
    with tempfile.TemporaryDirectory() as profile:
        scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
        command = [
            *(str(CHROMIUM), *_QUIET.split(), f"--user-data-dir={profile}", *scheme),
            *(f"--window-size={width},{height}", f"--screenshot={to}", page.as_uri()),
        ]
        subprocess.run(command, capture_output=True, timeout=120, check=True)
