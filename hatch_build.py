"""Build hook: compiles the native kernels with the C compiler at hand.

Where there is none the wheel is pure Python and the workers fall back to torch's own kernels, saying so.
`HEADRACE_NATIVE=0` skips the compilation, `HEADRACE_NATIVE=1` makes a missing compiler an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("workers/headrace_workers/kernels/native")
LIBRARY = SOURCES / "headrace_kernels.so"
# No -march: every kernel names its instruction set, and the library picks one on the node that runs it.
# No contraction: a product and a sum that the compiler fuses round otherwise than PyTorch's, and answers must not
# depend on which kernel computed them.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-fopenmp", "-fvisibility=hidden"]
FLAGS += ["-Wall", "-Wextra", "-Werror"]


class NativeKernels(BuildHookInterface[Any]):
    """Compile, and tag the wheel with this platform if that worked."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the compiled library to what is installed; `HEADRACE_NATIVE` is 0 (never), 1 (must) or auto."""
        mode = os.environ.get("HEADRACE_NATIVE", "auto")
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if mode == "0" or (compiler is None and mode != "1"):
            self.app.display_warning("native kernels skipped: no C compiler, or HEADRACE_NATIVE=0")
            return
        if compiler is None:
            raise RuntimeError("HEADRACE_NATIVE=1 asks for the native kernels, but there is no C compiler")
        root = Path(self.root)
        sources = sorted(str(path) for path in (root / SOURCES).glob("*.c"))
        command = [compiler, *FLAGS, *sources, "-o", str(root / LIBRARY), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            if mode == "1":
                raise RuntimeError(f"native kernels do not compile:\n{done.stderr}")
            self.app.display_warning(f"native kernels skipped, they do not compile here:\n{done.stderr}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(str(LIBRARY))
