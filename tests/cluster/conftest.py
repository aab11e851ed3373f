"""What the router's tests share: a server to ill-treat, and the audit that every one of them ends with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace_cluster.embedded import EmbeddedServer


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server for this test alone, which it may kill, pause or empty; every write is on disk at once."""
    with EmbeddedServer(fsync="always", die_with_parent=True) as server:
        yield server
