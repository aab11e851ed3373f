"""The Ray of a service on one machine: started in a folder of its own, stopped in order, and gone for certain.

Ray takes SIGTERM for itself, may stay half or hang if an interrupt breaks into its start, waits a minute for a Ray that
is gone, and leaves its folder behind; here it does not.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import ray

from headrace.server.connection import embedded_socket
from headrace_cluster.interrupts import interrupts_wait, take_back

__all__ = ["address_left", "left_address", "local_ray", "require_ray", "while_ray_lives"]

_OBJECT_STORE_BYTES: Final = 256 << 20
_LONGEST_FOLDER: Final = 40
"""Characters; Ray puts sockets 65 characters deeper, and the kernel takes 107."""
_LOOK_EVERY_S: Final = 0.25
_CONNECT_S: Final = 5.0
_REMOVE_S: Final = 10.0


@contextmanager
def local_ray(cpus: int, *, verbose: bool) -> Iterator[None]:
    """A Ray of our own in a directory of its own, both gone at the end; or the one that RAY_ADDRESS names.

    Raises:
        ConnectionError: nobody answers there, or this process has a Ray already, which is left as it is.
    """
    if ray.is_initialized():
        raise ConnectionError("this process is connected to a Ray already: call ray.shutdown() first")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A round of Serve's controller takes a few ms of a core that the replicas compute on; its default is ten a second.
    os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.25")
    with ExitStack() as stack:
        options: dict[str, Any] = {}
        if address := os.environ.get("RAY_ADDRESS"):
            require_ray(address)
        else:
            options = {
                "num_cpus": max(os.cpu_count() or 1, cpus),
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "_temp_dir": stack.enter_context(_short_folder()),
            }
        level = logging.INFO if verbose else logging.ERROR
        stack.enter_context(_started(partial(ray.init, log_to_driver=verbose, logging_level=level, **options)))
        yield


@contextmanager
def _started(start: Callable[[], object]) -> Iterator[None]:
    """Ray, started whole in a thread of its own, where no interrupt breaks in.

    The thread stays as long as Ray: the kernel kills Ray's processes when the thread that started them ends.
    """
    started, over = Future[None](), threading.Event()
    thread = threading.Thread(target=_start, args=(start, started, over), name="headrace-ray-started", daemon=True)
    try:
        _start_whole(thread, started)
        yield
    finally:
        ray.shutdown()
        over.set()


def _start_whole(thread: threading.Thread, started: Future[None]) -> None:
    """Wait for a whole Ray, though an interrupt comes, and take SIGTERM back from it.

    The handler that Ray's library puts below Python's writes a stack trace, and has the process aborted in 3 s.
    """
    try:
        with interrupts_wait():
            thread.start()
        started.result()
    except KeyboardInterrupt:
        if thread.is_alive():
            wait([started])
        signal.alarm(0)
        raise
    finally:
        take_back(signal.SIGTERM)


def _start(start: Callable[[], object], started: Future[None], over: threading.Event) -> None:
    try:
        start()
    except BaseException as error:
        started.set_exception(error)
    else:
        started.set_result(None)
        over.wait()


def _address_file() -> Path:
    return embedded_socket().parent / "ray_address"


@contextmanager
def address_left() -> Iterator[None]:
    """While it lasts, other commands of this user find the Ray that this process is connected to."""
    file, address = _address_file(), ray.get_runtime_context().gcs_address
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.write_text(address)
    try:
        yield
    finally:
        if left_address() == address:
            file.unlink(missing_ok=True)


def left_address() -> str | None:
    """Where the Ray of a running `headrace serve` is, if one has said so."""
    try:
        return _address_file().read_text("utf-8").strip() or None
    except OSError:
        return None


def require_ray(address: str) -> None:
    """Ray itself takes two minutes to find out that nobody listens there."""
    host, _, port = address.rpartition(":")
    if host and "//" not in host and port.isdecimal():
        try:
            _connect(address)
        except OSError as error:
            raise ConnectionError(f"no Ray answers at RAY_ADDRESS, {address}: {error.strerror or error}") from None


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()


def while_ray_lives(steps: Iterator[None]) -> None:
    """Do something that needs Ray, step by step, and give it up if Ray goes meanwhile.

    A service manager may stop all processes of a service at once. Ray's client would wait a minute for those that
    are gone, and then end this process without asking it. Nothing may be asked of it after that, either: it would
    start a new Ray.
    """
    address, done, given_up = ray.get_runtime_context().gcs_address, Future[None](), threading.Event()
    threading.Thread(target=_walk, args=(steps, done, given_up), name="headrace-ray", daemon=True).start()
    try:
        while True:
            with suppress(TimeoutError):
                return done.result(_LOOK_EVERY_S)
            try:
                _connect(address)
            except OSError:
                return None
    finally:
        given_up.set()


def _walk(steps: Iterator[None], done: Future[None], given_up: threading.Event) -> None:
    try:
        for _ in steps:
            if given_up.is_set():
                return
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)


@contextmanager
def _short_folder() -> Iterator[str]:
    """A folder that is gone at the end, though Ray's last processes may still write there."""
    parent = tempfile.gettempdir()
    too_long = len(os.fsencode(parent)) > _LONGEST_FOLDER - len("/headrace-ray-12345678")
    folder = Path(tempfile.mkdtemp(prefix="headrace-ray-", dir="/tmp" if too_long else parent))  # noqa: S108  # 0700
    try:
        yield str(folder)
    finally:
        deadline = time.monotonic() + _REMOVE_S
        while folder.exists() and time.monotonic() < deadline:
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(_LOOK_EVERY_S if folder.exists() else 0)
