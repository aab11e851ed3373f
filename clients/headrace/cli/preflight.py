"""What is made sure of before a command begins: that Redis answers, and that somebody serves the model."""

from __future__ import annotations

from headrace.aio import AsyncClient
from headrace.errors import UnknownModelError
from headrace.models.shards import require_one

__all__ = ["require_model"]


async def require_model(client: AsyncClient, model: str, *, one_shard: bool = False) -> None:
    """Return if jobs of the model can be taken.

    Args:
        client: of the server.
        model: its name, or that of a shard.
        one_shard: whether it must not stand for several, since the command works on a single one.

    Raises:
        RedisError: the server does not answer.
        UnknownModelError: no service has registered the model.
        ShardedModelError: it has several shards.
    """
    await client.ping()
    registered = await client.models()
    if one_shard:
        require_one(model, await client.shards(model))
    if model not in registered and f"{model}#0" not in registered:
        raise UnknownModelError(f"no service has registered the model {model!r} in this Redis")
