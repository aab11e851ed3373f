"""Programs that get namespaces of their own: a network, mounts and processes that nobody else has a part in.

Whatever they start ends with them, however they end; and what kills all of Ray's processes finds only theirs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

__all__ = ["can_be_alone", "run_alone"]

_TESTS: Final = Path(__file__).parents[1]
_AS_ROOT: Final = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
_ALONE: Final = ["unshare", *_AS_ROOT, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
_TOOLS: Final = ("unshare", "nsenter", "ip", "wget")
_LOG_CHARACTERS: Final = 1500
_ERROR_CHARACTERS: Final = 10_000


@cache
def can_be_alone() -> bool:
    """Whether this machine lets us make namespaces, and has the tools."""
    if not all(shutil.which(tool) for tool in _TOOLS):
        return False
    bridge = ["ip", "link", "add", "bridge0", "type", "bridge"]
    return subprocess.run([*_ALONE, *bridge], capture_output=True).returncode == 0


def run_alone(module: str, folder: Path, *, within_s: float, **variables: str) -> dict[str, Any]:
    """Run a module with a folder as its argument; what it prints last is what it tells, as JSON.

    Args:
        module: in `tests`.
        folder: for what it writes; the ends of `*/log` in it are shown if it fails.
        within_s: it is killed after that.
        variables: of its environment, besides this process's own without those of Ray and of the service.
    """
    done = subprocess.run(
        [*_ALONE, sys.executable, "-m", module, str(folder)],
        env=_environment() | variables,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    logs = "\n".join(f"--- {log.parent.name}\n{log.read_text()[-_LOG_CHARACTERS:]}" for log in folder.glob("*/log"))
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-_ERROR_CHARACTERS:]}\n{logs}"
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(told))
    return told


def _environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HEADRACE_"))}
    paths = [str(_TESTS), os.environ.get("PYTHONPATH", "")]
    programs = [str(Path(sys.executable).parent), os.environ["PATH"]]
    return own | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": os.pathsep.join(programs),
        "OMP_NUM_THREADS": "1",
    }
