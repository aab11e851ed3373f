"""When a deployment's processes must be exchanged: only when what they were made with has changed.

Serve gives whatever is deployed a version of its own, and exchanges every process of a service for any change. So we
name the version ourselves, after the arguments: what did not change goes on undisturbed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from headrace import __version__
from headrace_cluster.redis_address import RedisAddress

__all__ = ["version_of"]


def version_of(*arguments: object) -> str:
    """A name for what a process is made with: equal for equal arguments and the same release of this code.

    Raises:
        TypeError: an argument is of a kind that cannot be compared.
    """
    text = json.dumps([__version__, [_plain(argument) for argument in arguments]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: object) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, RedisAddress):
        return _mark_of(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"a {type(value).__name__} has no version")


@lru_cache(maxsize=8)
def _mark_of(address: RedisAddress) -> list[str]:
    """What tells two addresses apart; slow to compute and cut short, for versions are seen and passwords are not."""
    url = address.url.get_secret_value().encode()
    mark = hashlib.scrypt(url, salt=b"headrace", n=1 << 14, r=8, p=1, dklen=4).hex()
    return [mark, *(str(file) for file in (address.url_file, address.ca_file, address.cert_file, address.key_file))]
