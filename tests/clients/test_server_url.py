"""URLs: one server, sentinels, a cluster; what is malformed; and what of a URL may be shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.errors import RedisSetupError
from headrace.server.connection import commands, reads
from headrace.server.url import ServerUrl, redacted, with_tls

SECRET = "tr0ub4dor&3"


@pytest.mark.parametrize(
    ("url", "topology", "hosts", "service", "options"),
    [
        ("redis://host", "single", [("host", 6379)], "", {}),
        ("redis://u:p%26@host:1/3", "single", [("host", 1)], "", {"username": "u", "password": "p&", "db": 3}),
        ("unix:///run/r.sock?db=2", "single", [], "", {"path": "/run/r.sock", "db": 2}),
        ("redis+sentinel://a,b:2,[::1]:3/main", "sentinel", [("a", 26379), ("b", 2), ("::1", 3)], "main", {}),
        ("redis+sentinel://u:p@a/main/7", "sentinel", [("a", 26379)], "main", {"username": "u", "db": 7}),
        ("rediss+sentinel://a/main", "sentinel", [("a", 26379)], "main", {}),
        ("redis+cluster://a:1,b", "cluster", [("a", 1), ("b", 6379)], "", {}),
        ("redis+cluster://:p@a/0", "cluster", [("a", 6379)], "", {"password": "p"}),
        ("rediss+cluster://a,b/", "cluster", [("a", 6379), ("b", 6379)], "", {}),
    ],
)
def test_urls(url: str, topology: str, hosts: list[tuple[str, int]], service: str, options: dict[str, Any]) -> None:
    """Hosts with their usual ports, the service, and what connections are made with."""
    parsed = ServerUrl.parse(url)
    assert (parsed.topology, list(parsed.hosts), parsed.service) == (topology, hosts, service)
    assert options.items() <= parsed.options.items()
    assert parsed.secure is url.startswith("rediss")


def test_credentials_of_sentinels() -> None:
    """They stand in the query, and do not go to the servers."""
    parsed = ServerUrl.parse("redis+sentinel://u:p@a/main?sentinel_username=s&sentinel_password=t&max_connections=5")
    assert parsed.sentinel_options == {"username": "s", "password": "t"}
    assert parsed.options == {"username": "u", "password": "p", "max_connections": 5}
    assert "p" not in repr(parsed).replace("ServerUrl", "")


@pytest.mark.parametrize(
    "url",
    [
        f"redis+sentinel://:{SECRET}@host:26379",
        f"redis+sentinel://:{SECRET}@host:26379/main/x",
        f"redis+sentinel://:{SECRET}@host:26379/main/0/more",
        f"redis+sentinel://:{SECRET}@host:port/main",
        f"redis+sentinel://:{SECRET}@host,/main",
        f"redis+sentinel://:{SECRET}@host:99999/main",
        f"redis+cluster://:{SECRET}@host/1",
        f"redis+cluster://:{SECRET}@",
        f"redis+other://:{SECRET}@host",
        f"unix+sentinel://:{SECRET}@host/main",
        f"redis+sentinel://host/main?db={SECRET}",
        "redis",
        "",
        "://",
    ],
)
@pytest.mark.parametrize("connect", [commands, reads])
def test_what_is_no_url(url: str, connect: Any) -> None:
    """Named, with examples, and without the password."""
    with pytest.raises(RedisSetupError, match=r"not a Redis URL: .*redis\+sentinel://.*redis\+cluster://") as caught:
        connect(url)
    assert SECRET not in str(caught.value)
    assert (
        SECRET not in repr(caught.value.__cause__ or caught.value.__context__ or "")
        or caught.value.__suppress_context__
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis+sentinel://user:secret@a:1,b:2/main/0?sentinel_password=x", "redis+sentinel://user:***@a:1,b:2/main/0"),
        ("rediss+cluster://:secret@a,b", "rediss+cluster://***@a,b"),
    ],
)
def test_what_is_shown(url: str, shown: str) -> None:
    """The place, not the key to it."""
    assert redacted(url) == shown


def test_certificates_beside_the_url() -> None:
    """Settings outrank what the URL's query says, and leave the rest of it as it is."""
    files = {"ca_file": Path("/a b/ca.pem"), "cert_file": None, "key_file": Path("/k")}
    url = with_tls("rediss://host/0?ssl_ca_certs=/other&db=1", **files)
    options = ServerUrl.parse(url).options
    assert options == {"db": 1, "ssl_ca_certs": "/a b/ca.pem", "ssl_keyfile": "/k"}
    assert with_tls("rediss://host/0") == "rediss://host/0"
