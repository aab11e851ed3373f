"""What all commands share: help, exit statuses, JSON, and what happens where something is missing or broken."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
import typer
from typer.main import get_group

from headrace import __version__
from headrace.cli import app, main
from headrace.cli.output import EXIT_STATUSES, Exit
from support.command_line import HEADRACE, Run
from support.service import PlainService

COMMANDS = (
    ("status",),
    ("submit", "echo", "a text"),
    ("results", "echo", "some-inbox"),
    ("batch", "echo", __file__, "-o", "never-written.jsonl"),
)


def test_help_shows_examples_extras_and_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for command in ("submit", "results", "status", "batch"):
        assert f" {command} " in text
    assert 'headrace submit minilm "water flows downhill"' in text
    assert "pip install 'headrace[cluster,embedded]'" in text
    assert EXIT_STATUSES in text


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: headrace" in capsys.readouterr().out


def test_the_installed_command_runs() -> None:
    done = subprocess.run([HEADRACE, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"headrace {__version__}\n"


COMPLETING = """
eval "$(headrace --show-completion)"
for line in "$@"; do
    COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _headrace_completion headrace
    echo "${COMPREPLY[@]}"
done
"""


def test_the_shell_completes_commands_and_options() -> None:
    """With the script that `--show-completion` prints for the shell it is started from."""
    lines = ["headrace su", "headrace bench tr", "headrace submit --pri"]
    environment = os.environ | {"PATH": f"{HEADRACE.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", COMPLETING, "bash", *lines], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines() == ["submit", "transport", "--priority"]


def test_the_completion_is_installed_for_the_shell(tmp_path: Path) -> None:
    """In the home directory, and nowhere else."""
    environment = os.environ | {"HOME": str(tmp_path)}
    command = f"{HEADRACE} --install-completion; exit $?"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=True)
    assert "bash completion installed in" in done.stdout
    (script,) = tmp_path.rglob("headrace.sh")
    assert "complete -o default -F _headrace_completion headrace" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_command_says_what_to_install(missing: str) -> None:
    run = "from headrace.cli import main; sys.exit(main(['status', '--json']))"
    code = f"import sys; sys.modules[{missing!r}] = None; {run}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: the command line needs the package {missing}: pip install 'headrace[cli]'\n"
    assert '"code": "missing_extra"' in done.stdout


def test_importing_the_command_line_pulls_in_nothing_heavy() -> None:
    code = (
        "import sys, headrace.cli; assert 'typer' not in sys.modules and 'rich' not in sys.modules;"
        "import headrace.cli.app; assert not {'ray', 'torch', 'numpy', 'headrace_cluster'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- the commands of other packages -------------------------------------------------------------------------


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """The entry points that the command line finds, for the test to choose."""
    found: list[EntryPoint] = []
    monkeypatch.setattr(app, "entry_points", lambda group: found)
    return found


def register(application: typer.Typer) -> None:
    """What an entry point names."""

    @application.command()
    def grind() -> int:
        """Grind flour."""
        print("flour")
        return 0


def break_down(application: typer.Typer) -> None:
    """An entry point with a fault."""
    raise RuntimeError("the wheel is stuck")


def point(name: str) -> EntryPoint:
    return EntryPoint(name=name, value=f"{__name__}:{name}", group="headrace.commands")


def test_other_packages_register_commands(others: list[EntryPoint], capsys: pytest.CaptureFixture[str]) -> None:
    sys.modules.setdefault(__name__, sys.modules[register.__module__])
    others.append(point("register"))
    assert main(["grind"]) == 0
    assert capsys.readouterr().out == "flour\n"
    assert main(["--help"]) == 0
    assert "Grind flour." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("package", "commands"), [("cluster", app._CLUSTER_COMMANDS), ("workers", app._WORKERS_COMMANDS)]
)
def test_the_light_client_knows_the_commands_of_each_extra(package: str, commands: tuple[str, ...]) -> None:
    """So that whoever asks for one is told what to install, and not that there is none."""
    [registered] = [point for point in entry_points(group="headrace.commands") if point.name == package]
    application = typer.Typer()
    registered.load()(application)
    assert set(get_group(application).commands) == set(commands)


def test_a_package_without_its_extra_is_passed_over(
    others: list[EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    others.append(EntryPoint(name="absent", value="no_such_package.cli:register", group="headrace.commands"))
    assert main(["serve", "--json"]) == Exit.USAGE
    captured = capsys.readouterr()
    assert captured.err.startswith("error: the command 'serve' is not part of the light client\nhint: pip install")
    assert '"code": "missing_extra"' in captured.out


def test_a_broken_package_costs_its_own_commands_alone(
    others: list[EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    others += [point("break_down"), point("register")]
    assert main(["grind"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "flour\n"
    assert "warning: the commands of" in captured.err
    assert "the wheel is stuck" in captured.err


async def test_light_commands_do_not_look_for_others(
    monkeypatch: pytest.MonkeyPatch, echo_service: PlainService, headrace: Run
) -> None:
    monkeypatch.setattr(app, "entry_points", lambda group: pytest.fail("looked"))
    assert (await headrace("status")).status == 0


# -- errors -------------------------------------------------------------------------------------------------


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flow"]) == Exit.USAGE
    assert capsys.readouterr().err == "error: No such command 'flow'.\nhint: headrace --help\n"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
async def test_an_unknown_option_is_wrong_usage(command: tuple[str, ...], headrace: Run) -> None:
    ran = await headrace(*command, "--frobnicate", "--json")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.USAGE, "usage")
    assert ran.err == f"error: No such option: --frobnicate\nhint: headrace {command[0]} --help\n"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
async def test_redis_down_is_unavailable(command: tuple[str, ...], headrace: Run, tmp_path: Path) -> None:
    ran = await headrace(*command, "--json", "-u", f"unix://{tmp_path}/nobody.sock")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.UNAVAILABLE, "redis_unavailable")
    assert ran.err.startswith(f"error: reaching Redis at unix://{tmp_path}/nobody.sock: ")
    assert "\nhint: start Redis or `headrace serve`" in ran.err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
async def test_a_bad_url_is_wrong_configuration(command: tuple[str, ...], headrace: Run) -> None:
    ran = await headrace(*command, "--json", "-u", "htp://user:secret@host")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.USAGE, "redis_setup")
    assert "secret" not in ran.out + ran.err


@pytest.mark.parametrize("command", [*COMMANDS[1:], ("status", "echo")], ids=lambda command: command[0])
async def test_an_unknown_model_is_wrong_usage(
    command: tuple[str, ...], headrace: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = await headrace(*command, "--json")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.USAGE, "unknown_model")
    assert "`headrace status` lists the models" in ran.err
    assert names_in(tmp_path) == []


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def test_errors_for_people_leave_stdout_empty(headrace: Run) -> None:
    ran = await headrace("submit", "echo", "a text")
    assert (ran.status, ran.out) == (Exit.USAGE, "")


# -- output -------------------------------------------------------------------------------------------------


async def test_no_color_when_a_program_or_the_user_says_so(
    echo_service: PlainService, headrace: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in (await headrace("status")).out
    assert "\x1b[" not in (await headrace("status", "--json")).out
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR")
    assert "\x1b[" not in (await headrace("status")).out


def test_a_reader_who_leaves_is_no_fault() -> None:
    done = subprocess.run(f"{HEADRACE} --help | head -1", shell=True, capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
