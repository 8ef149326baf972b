"""Programs under kvmpy spy, and what it told of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SPY = [sys.executable, "-m", "kvmpy.cli.main", "spy"]
VMM = [sys.executable, str(Path(__file__).with_name("vmm.py"))]
LIMIT = 40


def spy(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """kvmpy spy with these arguments, to its end."""
    return subprocess.run(
        [*SPY, *map(str, arguments)], capture_output=True, text=True, timeout=LIMIT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, **options
    )


@cache
def no_ptrace() -> str:
    """Why nothing can be traced here; empty where it can."""
    result = spy("--", "true")
    return "" if result.returncode == 0 else result.stderr.strip()


def events(path: Path) -> list[dict[str, Any]]:
    """Those of a trace in JSON lines."""
    lines = path.read_text().splitlines()
    assert lines[0].startswith('{"kvmpy_trace":')
    return [json.loads(line) for line in lines[1:]]


def calls(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The data of all calls of that name."""
    return [event["data"] for event in found if event["what"] == "ioctl" and event["data"]["name"] == name]
