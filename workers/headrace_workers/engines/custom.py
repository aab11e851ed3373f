"""A user's own engine: a class named in the service's configuration.

The name comes from the operator's configuration and from nowhere else: nothing that arrives over the wire or out of an
artifact is ever imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

from headrace.errors import ModelLoadError
from headrace_workers.engines.base import Engine

__all__ = ["load_engine"]

_METHODS: Final = ("prepare", "run", "example")
_STEPPING: Final = ("start", "step", "cancel")


def load_engine(target: str, options: Mapping[str, Any], *, generates: bool = False) -> Engine:
    """Construct `package.module:ClassName` with `options` as keyword arguments; `generates`: a `StepEngine`.

    Raises:
        ModelLoadError: it cannot be imported or constructed, or is no such engine; the message says what it lacks.
    """
    kind = _imported(target)
    try:
        engine = kind(**options)
    except Exception as error:  # it is the user's code
        raise ModelLoadError(f"{target}(**{dict(options)!r}) failed: {type(error).__name__}: {error}") from error
    needed, contract = (_METHODS + _STEPPING, "StepEngine") if generates else (_METHODS, "Engine")
    lacking = [name for name in needed if not callable(getattr(engine, name, None))]
    if not hasattr(engine, "info"):
        lacking.append("info")
    if lacking:
        raise ModelLoadError(
            f"{target} is no {contract}: it lacks {', '.join(lacking)} (see headrace_workers.{contract})"
        )
    checked: Engine = engine
    return checked


def _imported(target: str) -> Any:
    module_name, colon, class_name = target.partition(":")
    if not colon or not module_name or not class_name:
        raise ModelLoadError(f"{target!r} does not name a class; write package.module:ClassName")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # an import runs the user's code
        raise ModelLoadError(f"{target}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    kind = getattr(module, class_name, None)
    if not callable(kind):
        raise ModelLoadError(f"{target}: {module_name} has no class {class_name}")
    return kind
