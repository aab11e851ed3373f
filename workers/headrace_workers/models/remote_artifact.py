"""An artifact behind a URL, read file by file: `s3://models/minilm-int8#sha256=5f0c…`.

The digest is that of its manifest, which has those of all other files. It makes the URL a promise: nothing else is
ever read under it. What a store answers is believed only as far as a digest goes.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Self, TypeVar

from pydantic import ValidationError

from headrace.errors import ArtifactError, ArtifactTamperedError, HeadraceError, ModelLoadError
from headrace_workers.artifacts.artifact import FileEntry, Manifest

__all__ = ["MANIFEST", "RemoteArtifact", "is_url"]

log = logging.getLogger(__name__)
Value = TypeVar("Value")

MANIFEST: Final = "manifest.json"

_SCHEMES: Final = ("file", "http", "https", "s3", "gs")
"""Where artifacts may come from. fsspec knows many more, some of which run code on what they read."""

_MOST_MANIFEST_BYTES: Final = 16 << 20
_CHUNK_BYTES: Final = 4 << 20
_ATTEMPTS: Final = 4
_FIRST_PAUSE_S: Final = 0.5
_CONNECT_S: Final = 10.0
_SILENCE_S: Final = 60.0
_FINAL: Final = (HeadraceError, FileNotFoundError, PermissionError, ImportError)
"""What another attempt would not change."""


def is_url(model: str) -> bool:
    """Whether a model is named by a URL, not by a path or a hub id."""
    return "://" in model


@dataclass(frozen=True)
class RemoteArtifact:
    """Where an artifact lies, and what it has to be. Its words for people hold no password."""

    url: str
    pin: str | None
    """The SHA-256 of its manifest; None: whatever is there."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Take a URL apart.

        Raises:
            ModelLoadError: artifacts are not fetched that way, or what stands behind `#` is no digest.
        """
        address, _, fragment = url.partition("#")
        place = cls(address.rstrip("/"), fragment.removeprefix("sha256=") or None)
        scheme = address.partition("://")[0]
        if scheme not in _SCHEMES:
            raise ModelLoadError(f"{place}: artifacts are fetched by {', '.join(_SCHEMES)}, not by {scheme}")
        if fragment and not re.fullmatch(r"sha256=[0-9a-f]{64}", fragment):
            raise ModelLoadError(f"{place}: behind # must stand sha256= and 64 hexadecimal digits")
        return place

    def __str__(self) -> str:
        return re.sub(r"//[^/@]*@", "//***@", self.url)

    def manifest_bytes(self) -> bytes:
        """The manifest as it lies there.

        Raises:
            ModelLoadError: it cannot be had.
            ArtifactTamperedError: it is another artifact's than the URL says.
            ArtifactError: it is larger than a manifest can be.
        """

        def read() -> bytes:
            with self._open(MANIFEST) as file:
                return bytes(file.read(_MOST_MANIFEST_BYTES + 1))

        content = self._attempt(MANIFEST, read)
        if len(content) > _MOST_MANIFEST_BYTES:
            raise ArtifactError(f"{self}/{MANIFEST} is larger than a manifest can be")
        digest = hashlib.sha256(content).hexdigest()
        if self.pin not in (None, digest):
            raise ArtifactTamperedError(f"{self} is another artifact: the SHA-256 of its {MANIFEST} is {digest}")
        return content

    def files(self, manifest: bytes) -> dict[str, FileEntry]:
        """Every other file, by its path.

        Raises:
            ArtifactError: this is no manifest, or it names a file outside of the artifact.
        """
        try:
            files = Manifest.model_validate_json(manifest).files
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"])
            raise ArtifactError(f"{self}/{MANIFEST} is not valid: {where}: {first['msg']}") from None
        for relative in files:
            pure = PurePosixPath(relative)
            if pure.is_absolute() or ".." in pure.parts or str(pure) != relative or relative == MANIFEST:
                raise ArtifactError(f"{self}/{MANIFEST} names {relative!r}, which is no plain path in the artifact")
        return files

    def copy(self, relative: str, entry: FileEntry, target: Path) -> None:
        """Fetch one file.

        Raises:
            ModelLoadError: it cannot be had, or there is no room for it.
            ArtifactTamperedError: it is not what the manifest says.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = self._attempt(relative, lambda: self._copy(relative, entry, target))
        if digest != entry.sha256:
            raise ArtifactTamperedError(f"{self}/{relative} is not what its manifest describes: its SHA-256 differs")

    def _copy(self, relative: str, entry: FileEntry, target: Path) -> str:
        digest, size = hashlib.sha256(), 0
        with self._open(relative) as source, target.open("wb") as copy:
            while chunk := source.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > entry.bytes:
                    raise ArtifactTamperedError(f"{self}/{relative} is longer than its manifest says")
                digest.update(chunk)
                copy.write(chunk)
        if size < entry.bytes:
            raise EOFError(f"it ended after {size:,} of {entry.bytes:,} bytes")
        return digest.hexdigest()

    def _open(self, relative: str) -> Any:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        try:
            files, path = url_to_fs(f"{self.url}/{relative}", **self._options())
        except (ImportError, ValueError) as error:
            raise ModelLoadError(f"{self}: pip install 'headrace[fetch]' to read from there ({error})") from None
        return files.open(path, "rb")

    def _options(self) -> dict[str, Any]:
        if not self.url.startswith("http"):
            return {}
        from aiohttp import ClientTimeout

        # fsspec's own limit is on a whole file, however large it is.
        return {"client_kwargs": {"timeout": ClientTimeout(None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)}}

    def _attempt(self, relative: str, step: Callable[[], Value]) -> Value:
        """Do it, again after a pause if the network or the store may be to blame."""
        for attempt in range(_ATTEMPTS):
            try:
                return step()
            except HeadraceError:
                raise
            except Exception as error:  # whatever a store and a network can raise
                fault = f"{self}/{relative} cannot be fetched: {type(error).__name__}: {error}"
                if isinstance(error, _FINAL) or attempt == _ATTEMPTS - 1:
                    raise ModelLoadError(fault) from error
                log.warning("%s; trying again", fault)
            time.sleep(_FIRST_PAUSE_S * 2**attempt)
        raise AssertionError("every attempt returns or raises")
