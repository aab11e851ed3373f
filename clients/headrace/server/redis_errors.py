"""redis-py's errors, and those of sockets and TLS, as errors of our own tree."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from redis import exceptions

from headrace.errors import (
    RedisError,
    RedisFullError,
    RedisRoleError,
    RedisSetupError,
    RedisTlsError,
    RedisUnavailableError,
)
from headrace.server import tls

__all__ = ["is_lasting", "translate", "translated"]

_PASSING: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.ClusterError,
    exceptions.TryAgainError,
    exceptions.MovedError,
)
_PASSING_WORDS: Final = ("MISCONF", "NOREPLICAS", "UNBLOCKED", "MASTERDOWN", "LOADING")
_RIGHTS: Final = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)


@asynccontextmanager
async def translated(what: str) -> AsyncIterator[None]:
    """Turn redis-py's errors into ours, saying `what` was tried."""
    try:
        yield
    except exceptions.RedisError as error:
        raise translate(error, what) from error
    except (OSError, TimeoutError) as error:
        if advice := tls.explain(error):
            raise RedisTlsError(f"{what}: {advice}") from error
        raise RedisUnavailableError(f"{what}: {error or type(error).__name__}") from error


def translate(error: exceptions.RedisError, what: str) -> RedisError:
    """The error of our tree that a redis-py error stands for."""
    text = str(error)
    if isinstance(error, exceptions.OutOfMemoryError) or "OOM command not allowed" in text:
        return RedisFullError(f"{what}: Redis is at maxmemory and refuses writes; retry later, or give it memory")
    # A server that asks for a password does not even read a long command of who gave none.
    if _about_rights(error) or "unauthenticated" in text:
        return RedisSetupError(f"{what}: {text}; check the password, the user and its ACL")
    if advice := tls.explain(error):
        return RedisTlsError(f"{what}: {advice}")
    if "cluster support disabled" in text:
        return RedisRoleError(f"{what}: the server is no cluster; name it as redis://, without +cluster")
    if isinstance(error, _PASSING) or text.startswith(_PASSING_WORDS):
        return RedisUnavailableError(f"{what}: {text or type(error).__name__}")
    return RedisError(f"{what}: {text}")


def _about_rights(error: BaseException) -> bool:
    """Of the error itself, or of the handshake that is the cause of a lost connection."""
    return isinstance(error, _RIGHTS) or isinstance(error.__cause__, _RIGHTS)


def is_lasting(error: BaseException) -> bool:
    """Whether trying again cannot help: wrong credentials, or no trust."""
    return _about_rights(error) or tls.explain(error) is not None
