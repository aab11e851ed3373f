"""Artifacts by URL: fetched once a node, verified on the way, whole or not there."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ArtifactError, ArtifactTamperedError, ModelLoadError
from headrace_workers.artifacts.artifact import Source, open_artifact, write_artifact
from headrace_workers.models import remote_artifact
from headrace_workers.models.artifact_cache import artifact_cache, fetch_artifact


class Store(ThreadingHTTPServer):
    """A web server on a folder, which counts what is asked for and fails as it is told to."""

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        super().__init__(("127.0.0.1", 0), partial(Answer, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(SimpleHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.asked[name] += 1
        if self.server.failures[name]:
            self.server.failures[name] -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """An artifact of a few bytes, where somebody has put it."""
    return write_artifact(
        tmp_path / "models" / "small",
        task="embedding",
        source=Source(name="somewhere", sha256="0" * 64),
        files={"config.json": b"{}", "1_Pooling/config.json": b"{}", "blobs/weights.safetensors": b"w" * 5000},
        variants={},
    ).path


@pytest.fixture
def store(artifact: Path) -> Iterator[Store]:
    with Store(artifact.parent) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield server
        server.shutdown()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(remote_artifact, "_FIRST_PAUSE_S", 0.01)
    return tmp_path / "cache"


def digest(artifact: Path) -> str:
    return hashlib.sha256((artifact / "manifest.json").read_bytes()).hexdigest()


def test_an_artifact_is_fetched(artifact: Path, store: Store, cache: Path) -> None:
    """What comes is what lay there, under its digest."""
    fetched = fetch_artifact(f"{store.url}/small", cache=cache)
    assert fetched == cache / digest(artifact)
    assert open_artifact(fetched).manifest == open_artifact(artifact).manifest


def test_a_pinned_one_is_asked_for_once(artifact: Path, store: Store, cache: Path) -> None:
    """The node has it: no network, and so none that may be away."""
    url = f"{store.url}/small/#sha256={digest(artifact)}"
    first = fetch_artifact(url, cache=cache)
    asked = store.asked.copy()
    assert asked["manifest.json"] == 1
    assert fetch_artifact(url, cache=cache) == first
    assert store.asked == asked


def test_one_that_is_not_pinned_is_looked_at_again(artifact: Path, store: Store, cache: Path) -> None:
    """Another artifact at the same place is another folder; the one that is being served stays as it is."""
    first = fetch_artifact(f"{store.url}/small", cache=cache)
    shutil.rmtree(artifact)
    write_artifact(
        artifact, task="embedding", source=Source(name="x", sha256="1" * 64), files={"config.json": b"[]"}, variants={}
    )
    second = fetch_artifact(f"{store.url}/small", cache=cache)
    assert (first / "config.json").read_bytes() == b"{}"
    assert (second / "config.json").read_bytes() == b"[]"


def test_from_a_folder_too(artifact: Path, cache: Path) -> None:
    """A volume that all nodes mount is copied from as any store is."""
    assert open_artifact(fetch_artifact(f"file://{artifact}", cache=cache))


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As XDG has it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert artifact_cache() == tmp_path / "headrace" / "artifacts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert artifact_cache() == Path.home() / ".cache" / "headrace" / "artifacts"


def test_a_store_that_stumbles_is_asked_again(store: Store, cache: Path) -> None:
    """A 503 is not an answer."""
    store.failures["manifest.json"] = store.failures["config.json"] = 2
    assert open_artifact(fetch_artifact(f"{store.url}/small", cache=cache))


def test_a_store_that_is_down_is_given_up(store: Store, cache: Path) -> None:
    """After four attempts, with what it said last; and nothing is left behind."""
    store.failures["config.json"] = 1000
    with pytest.raises(ModelLoadError, match=r"config.json cannot be fetched: .*503"):
        fetch_artifact(f"{store.url}/small", cache=cache)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_wrong_pin(store: Store, cache: Path) -> None:
    """Somebody has put another artifact there."""
    with pytest.raises(ArtifactTamperedError, match=r"is another artifact: the SHA-256 of its manifest.json is"):
        fetch_artifact(f"{store.url}/small#sha256={'0' * 64}", cache=cache)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[]", "its SHA-256 differs"), (b"{}{}", "is longer than its manifest says")],
    ids=["changed", "longer"],
)
def test_a_file_that_is_not_the_manifests(
    artifact: Path, store: Store, cache: Path, content: bytes, words: str
) -> None:
    """It is refused by its name, and no part of the artifact stays."""
    (artifact / "config.json").write_bytes(content)
    with pytest.raises(ArtifactTamperedError, match=f"small/config.json.* {words}"):
        fetch_artifact(f"{store.url}/small", cache=cache)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_file_that_ends_early_or_is_missing(artifact: Path, store: Store, cache: Path) -> None:
    """The connection may have been cut, so it is asked for again before it is given up; a missing one is not."""
    (artifact / "config.json").write_bytes(b"{")
    with pytest.raises(ModelLoadError, match="it ended after 1 of 2 bytes"):
        fetch_artifact(f"{store.url}/small", cache=cache)
    (artifact / "config.json").unlink()
    before = store.asked["config.json"]
    with pytest.raises(ModelLoadError, match=r"small/.*config.json cannot be fetched: FileNotFoundError"):
        fetch_artifact(f"{store.url}/small", cache=cache)
    assert store.asked["config.json"] - before <= 2


@pytest.mark.parametrize("name", ["../escaped", "/etc/escaped", "a/../../escaped", "./a", "manifest.json"])
def test_a_manifest_that_points_out_of_its_artifact(artifact: Path, cache: Path, name: str) -> None:
    """Nothing is written anywhere."""
    manifest = artifact / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"1_Pooling/config.json"', f'"{name}"'))
    with pytest.raises(ArtifactError, match="no plain path in the artifact"):
        fetch_artifact(f"file://{artifact}", cache=cache)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize("content", [b"", b"{}", b"<html>not found</html>", b"[" * 100_000])
def test_what_is_no_manifest(artifact: Path, cache: Path, content: bytes) -> None:
    """A page that says so politely, for instance."""
    (artifact / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest.json is not valid"):
        fetch_artifact(f"file://{artifact}", cache=cache)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/model", "artifacts are fetched by file, http, https, s3, gs, not by ftp"),
        ("simplecache::s3://models/x", "not by simplecache::s3"),
        ("s3://models/x#5f0c", "must stand sha256= and 64 hexadecimal digits"),
        ("https://user:secret@host/x#sha256=5F", r"https://\*\*\*@host/x: behind #"),
    ],
)
def test_urls_that_are_not_taken(url: str, words: str, cache: Path) -> None:
    """Each is told what would be; a password in it is not repeated."""
    with pytest.raises(ModelLoadError, match=words) as raised:
        fetch_artifact(url, cache=cache)
    assert "secret" not in str(raised.value)


def test_no_room_on_the_disk(artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is written, in bytes."""
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelLoadError, match=r"has [0-9,]+ bytes, and .*cache has room for 10"):
        fetch_artifact(f"file://{artifact}", cache=cache)


def test_a_place_that_may_not_be_written(artifact: Path, tmp_path: Path) -> None:
    """A read-only root, where nobody mounted a folder for the cache."""
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ModelLoadError, match=r"cannot be kept in .*: Not a directory"):
        fetch_artifact(f"file://{artifact}", cache=tmp_path / "file" / "cache")


def test_many_replicas_fetch_once(store: Store, cache: Path) -> None:
    """Eight processes of one node start together: one fetches, all have it."""
    with multiprocessing.get_context("fork").Pool(8) as replicas:
        found = replicas.map(partial(fetch_artifact, cache=cache), [f"{store.url}/small"] * 8)
    assert len(set(found)) == 1
    assert store.asked["manifest.json"] == 8
    assert store.asked["weights.safetensors"] == 1


def test_what_a_killed_process_left_is_cleared_away(artifact: Path, cache: Path) -> None:
    """It died in the middle; its draft does not fill the disk for ever."""
    draft = cache / f".{digest(artifact)}.0badcafe"
    draft.mkdir(parents=True)
    fetched = fetch_artifact(f"file://{artifact}", cache=cache)
    assert sorted(cache.iterdir()) == [fetched, fetched.with_suffix(".lock")]
