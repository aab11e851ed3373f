"""The image, as far as can be told without a container engine.

`deploy/try_image.sh` builds it from Debian's packages and starts a head in it on a read-only root; it takes minutes.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy.checks.environment import unread
from headrace import __version__

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
HADOLINT = Path(sys.executable).with_name("hadolint")


def instructions(name: str) -> list[str]:
    """The arguments of all instructions of a name, each on one line."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M)
    return re.findall(rf"^{name}\s+(.*)$", re.sub(r"\\\n\s*", "", text), re.M)


@pytest.mark.skipif(not HADOLINT.exists(), reason="there is no hadolint for this machine")
def test_hadolint_finds_nothing() -> None:
    """The linter for Dockerfiles, with what it warns of."""
    done = subprocess.run([HADOLINT, ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_there_are_two_targets() -> None:
    """And the one that nobody names is the plain one."""
    stages = [line.rpartition(" ")[2] for line in instructions("FROM")]
    assert {"cpu", "cuda"} <= set(stages)
    assert stages[-1] == "cpu"


def test_it_does_not_run_as_root() -> None:
    """By number, since Kubernetes does not read /etc/passwd."""
    assert instructions("USER") == ["1000:1000"]


def test_it_has_what_the_operator_asks_with() -> None:
    """KubeRay's probes are bash and wget."""
    [install] = [line for line in instructions("RUN") if "useradd" in line]
    assert {"bash", "wget", "ca-certificates", "libgomp1"} <= set(install.split())


def test_its_version_and_variables() -> None:
    """As everywhere."""
    assert f"VERSION={__version__}" in instructions("ARG")
    variables = re.findall(r"([A-Z_]+)=(\S+)", " ".join(instructions("ENV")))
    assert len(variables) >= 8
    assert list(unread(variables)) == []


def context(folder: Path) -> Path:
    """What a build is given of this tree, by .dockerignore: all is left out that is not let in."""
    rules = [rule for rule in (ROOT / ".dockerignore").read_text().splitlines() if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    left_out = [rule.removeprefix("**/") for rule in rules[1:] if not rule.startswith("!")]
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*left_out))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The context of a build."""
    return context(tmp_path_factory.mktemp("context"))


def test_what_is_copied_is_let_in(built: Path) -> None:
    """Each file and folder that the first stage copies."""
    copied = [word for line in instructions("COPY") if not line.startswith("--from") for word in line.split()[:-1]]
    assert len(copied) >= 8
    assert [name for name in copied if not (built / name).exists()] == []


def test_no_weights_and_no_secrets_are_let_in(built: Path) -> None:
    """Nor anything that was built here."""
    unwanted = ("*.safetensors", "*.gguf", "*.so", "*.pyc", ".git", ".env", "*.pem", "shared", "tests")
    found = [path.name for path in built.rglob("*") if any(fnmatch.fnmatch(path.name, name) for name in unwanted)]
    assert found == []
    assert sum(path.stat().st_size for path in built.rglob("*")) < 5 << 20


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_wheel_is_built_from_it(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The RUN line of the first stage, in the environment of the tests: native kernels or nothing."""
    [line] = [line for line in instructions("RUN") if "pip wheel" in line]
    arguments = line.partition("pip wheel ")[2].replace("/wheel", str(tmp_path)).split()
    assert "HEADRACE_NATIVE=1" in instructions("ENV")
    monkeypatch.setenv("HEADRACE_NATIVE", "1")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", *arguments], cwd=built, check=True)
    [wheel] = tmp_path.glob("headrace-*.whl")
    assert wheel.name.startswith(f"headrace-{__version__}-py3-none-linux")
    names = zipfile.ZipFile(wheel).namelist()
    assert "headrace_workers/kernels/native/headrace_kernels.so" in names
    assert {"headrace/lua/submit.lua", "headrace_cluster/app.py"} <= set(names)
