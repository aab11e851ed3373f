"""The application behind the command line: its own light commands, and those of the heavier packages.

Other packages name a function `register(app: typer.Typer) -> None` in the entry point group
`headrace.commands`. It is looked for when one of its commands is asked for, or the list of them: `headrace
submit` never pays for importing a cluster, and a package that is broken costs its own commands alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from headrace._version import __version__
from headrace.cli.acl import acl
from headrace.cli.batch import batch
from headrace.cli.cancel import cancel
from headrace.cli.dlq import dlq
from headrace.cli.doctor import doctor
from headrace.cli.output import EXIT_STATUSES, CommandError, Exit, InterruptError, report, warnings_on_stderr
from headrace.cli.own_arguments import hide_passwords
from headrace.cli.results import results
from headrace.cli.status import status
from headrace.cli.submit import submit
from headrace.cli.top import top
from headrace.errors import HeadraceError

__all__ = ["Commands", "application", "run"]

log = logging.getLogger("headrace.cli")

_GROUP: Final = "headrace.commands"
_CLUSTER_EXTRAS: Final = "pip install 'headrace[cluster,embedded]'"
_WORKERS_EXTRAS: Final = "pip install 'headrace[workers]'"
_CLUSTER_COMMANDS: Final = ("serve", "apply", "check", "demo", "simulate", "bench")
_WORKERS_COMMANDS: Final = ("compress", "artifact")
_HEAVIER: Final = dict.fromkeys(_CLUSTER_COMMANDS, _CLUSTER_EXTRAS) | dict.fromkeys(_WORKERS_COMMANDS, _WORKERS_EXTRAS)
"""Commands of other packages, and what to install for them."""

# The base of Typer's usage errors: exported under this name by no version of Typer, present in all of them.
_UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[2]


def _come_with(extra: str, commands: Sequence[str], install: str) -> str:
    names = f"{', '.join(commands[:-1])} and {commands[-1]}"
    return f"The commands {names} come with the {extra} extra: {install.replace('[', chr(92) + '[')}"


_EPILOG: Final = f"""
Examples:

headrace submit minilm "water flows downhill"

headrace submit sentiment - --json < texts.txt

headrace submit smollm2 "Where does water flow?" --stream

headrace batch minilm texts.jsonl -o vectors.jsonl

headrace results minilm MY-INBOX --follow

headrace status

headrace top

headrace doctor service.yaml

headrace dlq replay minilm --code poison --dry-run

headrace compress ./minilm --recipe int8 -o ./minilm-int8

{_come_with("cluster", _CLUSTER_COMMANDS, _CLUSTER_EXTRAS)}

{_come_with("workers", _WORKERS_COMMANDS, _WORKERS_EXTRAS)}

{EXIT_STATUSES}
"""


class Commands(TyperGroup):
    """The command group; it knows the light commands, and looks for others when it must."""

    _looked = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, if there is one."""
        if cmd_name not in self.commands:
            self._look_for_others()
        if cmd_name in _HEAVIER and cmd_name not in self.commands:
            raise CommandError(
                f"the command {cmd_name!r} is not part of the light client",
                code="missing_extra",
                hint=_HEAVIER[cmd_name],
            )
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands that are installed."""
        self._look_for_others()
        return super().list_commands(ctx)

    def _look_for_others(self) -> None:
        if self._looked:
            return
        self._looked = True
        for point in entry_points(group=_GROUP):
            for name, command in _commands_of(point).items():
                self.commands.setdefault(name, command)


def _commands_of(point: EntryPoint) -> dict[str, Any]:
    """What one package registers; nothing if it cannot be imported."""
    others = typer.Typer()
    try:
        point.load()(others)
        return dict(get_group(others).commands)
    except ImportError as error:  # its extra is not installed: the help says which
        log.debug("commands of %s: %s", point.value, error)
    except Exception as error:
        log.warning("the commands of %s cannot be used: %r", point.value, error)
    return {}


def application() -> typer.Typer:
    """The application with the light commands."""
    app = typer.Typer(
        cls=Commands,
        name="headrace",
        help="Distributed batch inference: jobs through Redis Streams to compressed models, and the answers back.",
        epilog=_EPILOG,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for command in (submit, results, status, cancel, batch, acl, top, doctor):
        app.command()(command)
    app.add_typer(dlq, name="dlq")
    return app


def _say_version(asked: bool) -> None:
    if asked:
        print(f"headrace {__version__}")
        raise typer.Exit


def _global_options(
    version: bool = typer.Option(False, "--version", callback=_say_version, is_eager=True, help="Print the version."),
) -> None:
    """What may stand before a command."""


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status; what went wrong was said."""
    hide_passwords()
    as_json = "--json" in arguments
    command = get_command(application())
    with warnings_on_stderr():
        try:
            status = command.main(args=list(arguments) or ["--help"], prog_name="headrace", standalone_mode=False)
        except _UsageError as error:
            return report(_as_command_error(error), as_json=as_json)
        except (KeyboardInterrupt, typer.Abort):
            return report(InterruptError(), as_json=as_json)
        except (HeadraceError, OSError) as error:
            return report(error, as_json=as_json)
    if status == Exit.INTERRUPTED:  # how Typer answers a KeyboardInterrupt
        return report(InterruptError(), as_json=as_json)
    return int(status or 0)


def _as_command_error(error: Any) -> CommandError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "headrace"
    return CommandError(error.format_message(), code="usage", hint=f"{path} --help")
