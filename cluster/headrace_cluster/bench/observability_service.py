"""A service of `headrace bench observability`, in a process of its own.

Run as a module, with `on` or `off` for its metrics, and an encoder. It says where its Redis is when it is ready, and
serves until its standard input ends.
"""

from __future__ import annotations

import sys
from typing import Final

from headrace_cluster.config.settings import load_config
from headrace_cluster.local import LocalService

__all__ = ["ECHO", "ENCODER", "main"]

ECHO: Final = "echo"
"""The model that does nothing."""
ENCODER: Final = "encoder"


def main(metrics: str, model: str) -> None:
    """Serve."""
    config = load_config(
        {
            "models": {
                ECHO: {"engine": {"kind": "echo"}, "pools": [{"cpus": 0.1}]},
                ENCODER: {"engine": {"model": model, "precision": "int8"}},
            },
            "metrics": {"enabled": metrics == "on"},
        }
    )
    with LocalService(config) as service:
        print(service.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
