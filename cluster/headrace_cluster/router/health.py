"""What a router says over HTTP of how the models are: for people, and for whoever watches a route.

On Kubernetes the application needs a route, for Serve's proxy calls a node ready only when it has one to serve. Jobs
never come this way.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final

from starlette.responses import JSONResponse

__all__ = ["health"]

_TOLD: Final = ("replicas", "waiting", "in_flight")
"""Numbers alone: nothing that only those may know who may read Redis."""


def health(
    counts: Mapping[str, Mapping[str, Any]], *, redis_answers: bool, may_rest: Container[str] = ()
) -> JSONResponse:
    """The answer to a request: 200 where jobs of every model are run, 503 where not, with what is missing.

    Args:
        counts: for each model, what its router counts.
        redis_answers: whether Redis has been heard of within the last seconds.
        may_rest: models that are served though they have no replica: the next job starts one.
    """
    lacking = [] if redis_answers else ["Redis does not answer"]
    lacking += [
        f"no replica of {model} is ready"
        for model, told in counts.items()
        if not told["replicas"] and model not in may_rest
    ]
    content = {
        "ready": not lacking,
        "lacking": lacking,
        "models": {model: {name: told[name] for name in _TOLD} for model, told in counts.items()},
    }
    return JSONResponse(content, status_code=503 if lacking else 200)
