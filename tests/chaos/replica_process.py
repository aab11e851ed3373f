"""The process of one replica: the real `Replica` or `DecoderReplica`, reached over a Unix socket instead of Ray."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from chaos.decoder import ChaosDecoder
from chaos.engine import ChaosEngine
from chaos.frames import ENDED, FAILED, RAN, TAKEN, read_frame, write_frame
from chaos.history import History
from chaos.orders import Order
from chaos.socket_pool import socket_of
from headrace.messages import Batch, BatchOutcome, Fate, JobOutcomes
from headrace_workers.replicas.decoder_replica import DecoderReplica
from headrace_workers.replicas.replica import Replica
from support.waiting import eventually

__all__ = ["run_replica"]

_ROOM_BYTES: Final = 512 << 20
_END_S: Final = 60.0


def run_replica(order: Order) -> None:
    """Host a replica until SIGTERM."""
    _limit_memory()
    asyncio.run(_ReplicaProcess(order).serve())


def _limit_memory() -> None:
    """Leave this process a bounded amount of memory beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class _ReplicaProcess:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._history = History(order.histories, order.life)
        self._batches = 0

    async def serve(self) -> None:
        order = self._order
        replica = self._make_replica()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        path = socket_of(order.sockets, order.life)
        hidden = path.with_suffix(".new")  # a socket that stands is a replica that is ready
        server = await asyncio.start_unix_server(lambda r, w: self._answer(replica, r, w), hidden)
        hidden.rename(path)
        await ended.wait()
        path.unlink(missing_ok=True)
        server.close()
        await eventually(lambda: self._batches == 0, within_s=_END_S)
        await replica.close()

    def _make_replica(self) -> Any:
        order = self._order
        engine = ChaosEngine(self._history, order.scratch, batch_s=order.batch_s)
        if not order.words:
            return Replica(order.model, engine, redis_url=order.url)
        decoder = ChaosDecoder(self._history, engine, words=order.words, slots=order.batch_jobs, step_s=order.batch_s)
        return DecoderReplica(order.model, decoder, redis_url=order.url)

    async def _answer(self, replica: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._batches += 1
        try:
            message = await read_frame(reader)
            await write_frame(writer, TAKEN)
            self._note(message)
            await (self._stream if self._order.words else self._run)(replica, message, writer)
            await write_frame(writer, ENDED)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the router went away; what ran is in Redis
        finally:
            self._batches -= 1
            writer.close()

    def _note(self, message: bytes) -> None:
        envelopes = [entry.envelope for entry in Batch.from_bytes(message).entries]
        self._history.note("batch", jobs=[(e.job_id, e.attempt, e.deadline_ms) for e in envelopes])

    async def _run(self, replica: Any, message: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await replica.run(message)
        except Exception as error:
            await write_frame(writer, FAILED + repr(error).encode())
            return
        self._count(BatchOutcome.from_bytes(reply).fates)
        await write_frame(writer, RAN + reply)

    async def _stream(self, replica: Any, message: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            async with aclosing(replica.stream(message)) as replies:
                async for reply in replies:
                    self._count(JobOutcomes.from_bytes(reply).fates)
                    await write_frame(writer, RAN + reply)
        except (OSError, asyncio.IncompleteReadError):
            raise
        except Exception as error:
            await write_frame(writer, FAILED + repr(error).encode())

    def _count(self, fates: Sequence[int]) -> None:
        if fates:
            self._history.note("finish", answered=fates.count(Fate.ANSWERED), late=fates.count(Fate.LATE))
