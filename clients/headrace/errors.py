"""Every error headrace raises, in one tree.

Who raises it, and whether trying again can help::

    HeadraceError
    ├── InvalidJobError          client, before anything is sent       fix the job
    ├── SubmitRefusedError       client: the SUBMIT script said no
    │   ├── UnknownModelError      no service ever registered the model  fix the name, or start it
    │   ├── QueueFullError         the lane is at its cap                retry after .retry_after_s
    │   └── TenantQueueFullError   the tenant is at its cap              retry after .retry_after_s
    ├── RedisError               client, router, replica
    │   ├── RedisUnavailableError  no connection, or no reply in time    retry; nothing was lost
    │   ├── RedisFullError         the server is out of memory           retry later
    │   └── RedisSetupError        wrong URL, password, rights …         fix the URL or the server
    │       ├── RedisVersionError     too old for the scripts            upgrade it
    │       ├── RedisRoleError        a replica, or a sentinel           name the master
    │       ├── RedisEvictionError    it throws keys away when full      set noeviction
    │       ├── RedisDurabilityError  it keeps less than was asked for   set appendonly, appendfsync
    │       └── RedisTlsError         certificates do not fit            fix the files, or the host
    ├── WireError                whoever decodes
    │   ├── DecodeError            bytes that are not what they claim    never
    │   └── UnsupportedVersionError  a newer schema than this code knows upgrade this side
    ├── ShardedModelError        client: one inbox of a model of many    name the shard
    ├── ResultTimeoutError       client: no answer yet; the job lives    wait again
    ├── ResultGoneError          client: answered, consumed and trimmed  never
    ├── JobFailedError           client, from a terminal entry           see .failure.retryable
    │   ├── InvalidInputError      the replica refused this input        fix the job
    │   ├── EngineFailedError      the engine failed on this job         maybe
    │   ├── JobExpiredError        its deadline passed, or would        submit with more time
    │   ├── JobCancelledError      somebody cancelled it                 -
    │   └── JobDeadError           it was given up, and is kept          after a look at it
    ├── ConfigError              cluster, at start                       fix the named key
    ├── ArtifactError            worker, at load
    │   └── ArtifactTamperedError  a file's hash is not the manifest's   fetch it again
    ├── ModelLoadError           worker, at load                         fix path, files or task
    └── CompressionError         worker, while it compresses a model
        ├── RecipeError            the recipe says what is not understood  fix the named field
        ├── CompressionDataError   no text, no labels, too little of it  fix the named line, or give more
        ├── StageError             a stage does not suit the model       change the stage, or leave it out
        └── GateError              the result is not what was asked for  see the report; the work is kept

What travels on the wire is never an exception but a `FailureCode` with a message and a hint
(`headrace.messages.Failure`); the client turns it into the matching class above.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.messages import Failure, Receipt

__all__ = [
    "ArtifactError",
    "ArtifactTamperedError",
    "CompressionDataError",
    "CompressionError",
    "ConfigError",
    "DecodeError",
    "EngineFailedError",
    "FailureCode",
    "GateError",
    "HeadraceError",
    "InvalidInputError",
    "InvalidJobError",
    "JobCancelledError",
    "JobDeadError",
    "JobExpiredError",
    "JobFailedError",
    "ModelLoadError",
    "QueueFullError",
    "RedisDurabilityError",
    "RedisError",
    "RedisEvictionError",
    "RedisFullError",
    "RedisRoleError",
    "RedisSetupError",
    "RedisTlsError",
    "RedisUnavailableError",
    "RedisVersionError",
    "ResultGoneError",
    "ResultTimeoutError",
    "ShardedModelError",
    "SubmitRefusedError",
    "TenantQueueFullError",
    "UnknownModelError",
    "UnsupportedVersionError",
    "WireError",
]


class FailureCode(StrEnum):
    """Why a job ended in `error`: what the terminal entry carries, whoever wrote it."""

    UNDECODABLE = "undecodable"
    """The payload is not the msgpack map that the wire format asks for."""
    UNSUPPORTED_VERSION = "unsupported_version"
    """The envelope is of a newer schema than the service."""
    INVALID_INPUT = "invalid_input"
    """Wrong type, empty, not UTF-8, not finite, or of a shape the task does not take."""
    INPUT_TOO_LONG = "input_too_long"
    """More tokens than the model allows, and the service or the job says: refuse."""
    INVALID_PARAMS = "invalid_params"
    """A parameter that the task does not know, or a value outside its range."""
    ENGINE_FAILED = "engine_failed"
    """The engine raised while it ran this job."""
    NOT_FINITE = "not_finite"
    """The model answered with NaN or infinity."""
    OUTPUT_TOO_LARGE = "output_too_large"
    """The answer is larger than the service's limit."""
    EXPIRED = "expired"
    """The deadline passed before the job was done, or could not be met any more while too much waited."""
    POOL_FAILED = "pool_failed"
    """No replica could be made to run the job in the attempts it had."""
    POISON = "poison"
    """The job killed its replica, or hung it, each time it ran there alone."""
    CANCELLED = "cancelled"
    """Somebody cancelled the job."""
    MODEL_REMOVED = "model_removed"
    """The model was removed from the service before the job ran. It is kept as a dead letter."""


class HeadraceError(Exception):
    """Base of every error raised on purpose by headrace."""


class InvalidJobError(HeadraceError, ValueError):
    """The job breaks the contract; nothing was sent."""


class SubmitRefusedError(HeadraceError):
    """At least one job of a submit was refused. `receipts` tells the fate of each, in order."""

    def __init__(self, message: str, *, receipts: list[Receipt] | None = None) -> None:
        super().__init__(message)
        self.receipts: list[Receipt] = receipts or []


class ShardedModelError(HeadraceError):
    """The model has several shards, and what was asked for is only to be had of each of them."""


class UnknownModelError(SubmitRefusedError):
    """No service has registered this model in this Redis."""


class QueueFullError(SubmitRefusedError):
    """The lane holds as many jobs as its service allows."""

    def __init__(self, message: str, *, retry_after_s: float, receipts: list[Receipt] | None = None) -> None:
        super().__init__(message, receipts=receipts)
        self.retry_after_s = retry_after_s


class TenantQueueFullError(QueueFullError):
    """The tenant has as many live jobs as its service allows."""


class RedisError(HeadraceError):
    """Redis could not do what was asked."""


class RedisUnavailableError(RedisError):
    """No connection to Redis, or no reply in time. Repeating the call is safe."""


class RedisFullError(RedisError):
    """Redis refuses writes because it reached `maxmemory`."""


class RedisSetupError(RedisError):
    """The server's version, settings or rights do not fit; the message names the fix."""


class RedisVersionError(RedisSetupError):
    """The server is older than the scripts need."""


class RedisRoleError(RedisSetupError):
    """The server takes no writes: it is a replica, or a sentinel."""


class RedisEvictionError(RedisSetupError):
    """The server throws keys away when its memory is full, and jobs with them."""


class RedisDurabilityError(RedisSetupError):
    """The server keeps less of what it acknowledged than was asked for."""


class RedisTlsError(RedisSetupError):
    """No trust between this side and the server: an authority, a host's name or a certificate does not fit."""


class WireError(HeadraceError):
    """Something that crossed a process could not be understood."""


class DecodeError(WireError):
    """Bytes that are not the msgpack they should be; `reason` says how they fail."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnsupportedVersionError(WireError):
    """The message's schema version is newer than this side."""


class ResultTimeoutError(HeadraceError, TimeoutError):
    """No terminal entry in the time given. The job itself is untouched: ask again."""


class ResultGoneError(HeadraceError, LookupError):
    """The job ended, but its answer was consumed and trimmed, or its retention is over."""


class JobFailedError(HeadraceError):
    """The job's terminal entry is not `ok`. `failure` is what it carries."""

    def __init__(self, job_id: str, failure: Failure) -> None:
        text = f"job {job_id}: {failure.code}: {failure.message}"
        super().__init__(f"{text} ({failure.hint})" if failure.hint else text)
        self.job_id = job_id
        self.failure = failure

    def __reduce__(self) -> tuple[type[JobFailedError], tuple[str, Failure]]:
        return type(self), (self.job_id, self.failure)


class InvalidInputError(JobFailedError):
    """The service refused this job's input or parameters."""


class EngineFailedError(JobFailedError):
    """The engine, or the pool it runs in, failed on this job."""


class JobExpiredError(JobFailedError):
    """The deadline passed before the job was done, or could not be met any more while too much waited."""


class JobCancelledError(JobFailedError):
    """The job was cancelled."""


class JobDeadError(JobFailedError):
    """The job was given up, and is kept as a dead letter: it used up its attempts, kills replicas, or has no model."""


class ConfigError(HeadraceError, ValueError):
    """The service's configuration is wrong; the message names the key."""


class ArtifactError(HeadraceError):
    """The artifact is incomplete, or not one this code can read."""


class ArtifactTamperedError(ArtifactError):
    """A file of the artifact does not have the hash its manifest promises."""


class ModelLoadError(HeadraceError):
    """The model could not be loaded or does not do the task asked of it."""


class CompressionError(HeadraceError):
    """A model could not be compressed as asked. What was finished before is kept."""


class RecipeError(CompressionError, ValueError):
    """A recipe, or a target, says something that is not understood. The message names the place."""


class CompressionDataError(CompressionError, ValueError):
    """The data to compress with is not what it should be: no text, too little, labels for some."""


class StageError(CompressionError):
    """A stage cannot be done to this model: parts it needs are missing, or too little would be left."""


class GateError(CompressionError):
    """The result fails a gate of its recipe: it is kept to look at, and is no artifact to be served."""
