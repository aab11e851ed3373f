"""`headrace acl`: the users that Redis should know, each with what its work needs and no more."""

from __future__ import annotations

import re
from typing import Annotated, Final

import typer

from headrace.acl import HASH_PLACE, PROFILES, rules_of, set_user
from headrace.cli.options import AsJson
from headrace.cli.output import Output
from headrace.ids import MODEL_PATTERN

__all__ = ["acl"]

_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_USER: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")

_Profiles = Annotated[
    list[str] | None, typer.Argument(metavar="[PROFILE]...", help=f"Of {', '.join(PROFILES)}; all if none is named.")
]
_Models = Annotated[
    list[str] | None, typer.Option("--model", metavar="MODEL", help="Only keys of this model. Repeatable; else all.")
]
_User = Annotated[str | None, typer.Option("--user", metavar="NAME", help="The user's name; else headrace-PROFILE.")]
_Sha256 = Annotated[
    str | None, typer.Option("--sha256", metavar="HEX", help="SHA-256 of the password: printf %s … | sha256sum.")
]

_Redis70 = Annotated[bool, typer.Option("--redis-7.0", help="Leave out rules that a Redis 7.0 does not know.")]


def acl(
    profiles: _Profiles = None,
    *,
    models: _Models = None,
    user: _User = None,
    sha256: _Sha256 = None,
    redis_7_0: _Redis70 = False,
    as_json: AsJson = False,
) -> int:
    """Print the commands that make Redis users for producers, consumers, workers, monitors and admins.

    A password is never asked for and never printed, only its hash: without --sha256, replace PASSWORD_SHA256 in what
    is printed. Pipe the lines into redis-cli as an administrator. Needs Redis 7.0 or Valkey 7.2.

    headrace acl producer --user orders --model minilm --sha256 "$HASH" | redis-cli
    """
    names = profiles or list(PROFILES)
    _check(names, models or [], user, sha256)
    output, users = Output(as_json=as_json), []
    for name in names:
        profile = PROFILES[name]
        rules = rules_of(profile, models or (), since_7_2=not redis_7_0)
        command = set_user(profile, rules, user=user, sha256=sha256 or HASH_PLACE)
        users.append(
            {
                "profile": name,
                "purpose": profile.purpose,
                "user": user or f"headrace-{name}",
                "rules": rules,
                "command": command,
            }
        )
        output.show(command)
    output.emit({"users": users})
    if sha256 is None:
        output.note(f'replace {HASH_PLACE}:  printf %s "$PASSWORD" | sha256sum')
    return 0


def _check(profiles: list[str], models: list[str], user: str | None, sha256: str | None) -> None:
    if unknown := [name for name in profiles if name not in PROFILES]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(PROFILES)}", param_hint="PROFILE")
    if wrong := [name for name in models if not re.fullmatch(MODEL_PATTERN, name)]:
        raise typer.BadParameter(f"{wrong[0]!r} cannot be the name of a model", param_hint="--model")
    if user is not None and (len(profiles) > 1 or not _USER.fullmatch(user)):
        raise typer.BadParameter("is one user's name, for one profile", param_hint="--user")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise typer.BadParameter(
            "is not 64 hexadecimal digits; give the hash, never the password", param_hint="--sha256"
        )
