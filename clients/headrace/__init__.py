"""headrace: distributed batch inference over Redis Streams.

This package is the contract and the light client. It needs redis, msgpack and pydantic; importing it pulls
in neither ray nor torch. A first job::

    from headrace import Client, Job

    with Client() as client:
        result = client.run(Job(model="minilm", input="water flows downhill"), timeout_s=10)
        print(result.unwrap().tolist()[:4])
"""

from headrace._version import __version__
from headrace.aio import AsyncClient
from headrace.client import Client
from headrace.errors import (
    ArtifactError,
    ArtifactTamperedError,
    CompressionDataError,
    CompressionError,
    ConfigError,
    DecodeError,
    EngineFailedError,
    FailureCode,
    GateError,
    HeadraceError,
    InvalidInputError,
    InvalidJobError,
    JobCancelledError,
    JobDeadError,
    JobExpiredError,
    JobFailedError,
    ModelLoadError,
    QueueFullError,
    RecipeError,
    RedisDurabilityError,
    RedisError,
    RedisEvictionError,
    RedisFullError,
    RedisRoleError,
    RedisSetupError,
    RedisTlsError,
    RedisUnavailableError,
    RedisVersionError,
    ResultGoneError,
    ResultTimeoutError,
    ShardedModelError,
    StageError,
    SubmitRefusedError,
    TenantQueueFullError,
    UnknownModelError,
    UnsupportedVersionError,
    WireError,
)
from headrace.messages import (
    CancelOutcome,
    Chunk,
    Failure,
    Job,
    JobState,
    JobStatus,
    Receipt,
    Result,
    RetryPolicy,
    Status,
    SubmitOutcome,
    Tensor,
)
from headrace.scripts import Audit
from headrace.settings import ClientSettings
from headrace.streaming.stream import AsyncStream
from headrace.streaming.sync_stream import Stream

__all__ = [
    "ArtifactError",
    "ArtifactTamperedError",
    "AsyncClient",
    "AsyncStream",
    "Audit",
    "CancelOutcome",
    "Chunk",
    "Client",
    "ClientSettings",
    "CompressionDataError",
    "CompressionError",
    "ConfigError",
    "DecodeError",
    "EngineFailedError",
    "Failure",
    "FailureCode",
    "GateError",
    "HeadraceError",
    "InvalidInputError",
    "InvalidJobError",
    "Job",
    "JobCancelledError",
    "JobDeadError",
    "JobExpiredError",
    "JobFailedError",
    "JobState",
    "JobStatus",
    "ModelLoadError",
    "QueueFullError",
    "Receipt",
    "RecipeError",
    "RedisDurabilityError",
    "RedisError",
    "RedisEvictionError",
    "RedisFullError",
    "RedisRoleError",
    "RedisSetupError",
    "RedisTlsError",
    "RedisUnavailableError",
    "RedisVersionError",
    "Result",
    "ResultGoneError",
    "ResultTimeoutError",
    "RetryPolicy",
    "ShardedModelError",
    "StageError",
    "Status",
    "Stream",
    "SubmitOutcome",
    "SubmitRefusedError",
    "TenantQueueFullError",
    "Tensor",
    "UnknownModelError",
    "UnsupportedVersionError",
    "WireError",
    "__version__",
]
