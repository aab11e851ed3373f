"""Everything that crosses a process: what a producer says, what lies in Redis, what a router and a replica say.

One file for each thing that is said: `job` and `result` are what people handle; `envelope` and `payload` are
the two halves of a job on the wire, `lane` and `inbox` the stream entries (docs/wire.md has them in bytes);
`batch` is what a router sends to a replica and hears back.
"""

from headrace.messages.batch import Batch, BatchOutcome, Fate, JobOutcomes
from headrace.messages.chunk import Chunk, pack_chunk, unpack_chunk
from headrace.messages.envelope import WIRE_VERSION, Envelope
from headrace.messages.inbox import InboxEntry, pack_answer, pack_failure
from headrace.messages.job import CancelOutcome, Job, Priority, Receipt, SubmitOutcome
from headrace.messages.lane import LaneEntry
from headrace.messages.payload import pack_payload, unpack_payload
from headrace.messages.result import Failure, JobState, JobStatus, Result, Status, Tensor
from headrace.messages.retry import DEFAULT_RETRY, RetryPolicy

__all__ = [
    "DEFAULT_RETRY",
    "WIRE_VERSION",
    "Batch",
    "BatchOutcome",
    "CancelOutcome",
    "Chunk",
    "Envelope",
    "Failure",
    "Fate",
    "InboxEntry",
    "Job",
    "JobOutcomes",
    "JobState",
    "JobStatus",
    "LaneEntry",
    "Priority",
    "Receipt",
    "Result",
    "RetryPolicy",
    "Status",
    "SubmitOutcome",
    "Tensor",
    "pack_answer",
    "pack_chunk",
    "pack_failure",
    "pack_payload",
    "unpack_chunk",
    "unpack_payload",
]
