"""What a node has fetched: one folder for each artifact, named by the digest of its manifest, and whole.

An image without weights is small and the same for all models, so a replica fetches its artifact when it starts. The
replicas of a node share the folder: one fetches, the others wait, and whoever comes later finds it there. It is
written beside its place and renamed into it, so a process that is killed while it fetches leaves nothing half done.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from headrace.errors import ModelLoadError
from headrace_workers.artifacts.artifact import FileEntry
from headrace_workers.models.remote_artifact import MANIFEST, RemoteArtifact

__all__ = ["artifact_cache", "fetch_artifact"]

log = logging.getLogger(__name__)

_AT_A_TIME: Final = 4
_LOOK_EVERY_S: Final = 0.1
_WAIT_FOR_OTHERS_S: Final = 3600.0


def artifact_cache() -> Path:
    """Where a node keeps what it has fetched: `headrace/artifacts` in `XDG_CACHE_HOME`, else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace" / "artifacts"


def fetch_artifact(url: str, *, cache: Path | None = None) -> Path:
    """The artifact at a URL, as a folder on this node; from the network only if it is not here yet.

    Args:
        url: the artifact's directory (`file`, `http`, `https`, `s3` or `gs`), with the SHA-256 of its manifest behind
            `#sha256=`, if it must be that one. Without, the manifest is asked for each time.
        cache: where to keep it; None: `artifact_cache()`.

    Raises:
        ModelLoadError: it cannot be had: no such place, no rights, no package for the scheme, no room on the disk.
        ArtifactTamperedError: what is there is not what the URL or the manifest says.
        ArtifactError: what is there is no artifact.
    """
    remote, folder = RemoteArtifact.parse(url), cache or artifact_cache()
    if remote.pin and (folder / remote.pin).is_dir():
        return folder / remote.pin
    manifest = remote.manifest_bytes()
    target = folder / hashlib.sha256(manifest).hexdigest()
    try:
        with _alone(target):
            if not target.is_dir():
                _fetch(remote, manifest, target)
    except OSError as error:
        raise ModelLoadError(f"{remote} cannot be kept in {folder}: {error.strerror or error}") from error
    return target


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """While this lasts, no other process of this node fetches the same artifact."""
    target.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _WAIT_FOR_OTHERS_S
    with target.with_suffix(".lock").open("w") as lock:
        while not _locked(lock):
            if time.monotonic() > deadline:
                raise ModelLoadError(f"another process has been fetching {target} for {_WAIT_FOR_OTHERS_S:.0f} s")
            time.sleep(_LOOK_EVERY_S)
        yield


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fetch(remote: RemoteArtifact, manifest: bytes, target: Path) -> None:
    """All of it appears at `target`, or nothing."""
    for abandoned in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    files = remote.files(manifest)
    _require_room(remote, files, target.parent)
    draft = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    draft.mkdir()
    try:
        (draft / MANIFEST).write_bytes(manifest)
        _fetch_files(remote, files, draft)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _fetch_files(remote: RemoteArtifact, files: dict[str, FileEntry], draft: Path) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="headrace-fetch") as pool:
        copies = [pool.submit(remote.copy, relative, entry, draft / relative) for relative, entry in files.items()]
        try:
            for copy in copies:
                copy.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    size, seconds = sum(entry.bytes for entry in files.values()), time.monotonic() - started
    log.info("fetched %s: %d files, %s bytes in %.1f s", remote, len(files), f"{size:,}", seconds)


def _require_room(remote: RemoteArtifact, files: dict[str, FileEntry], folder: Path) -> None:
    needed, free = sum(entry.bytes for entry in files.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise ModelLoadError(f"{remote} has {needed:,} bytes, and {folder} has room for {free:,}")
