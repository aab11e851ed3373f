"""What is made sure of before a command begins: that Redis answers, and that somebody serves the model."""

from __future__ import annotations

from headrace.aio import AsyncClient
from headrace.errors import UnknownModelError

__all__ = ["require_model"]


async def require_model(client: AsyncClient, model: str) -> None:
    """Return if jobs of the model can be taken.

    Raises:
        RedisError: the server does not answer.
        UnknownModelError: no service has registered the model.
    """
    await client.ping()
    if model not in await client.models():
        raise UnknownModelError(f"no service has registered the model {model!r} in this Redis")
