"""How `make test` deals out the tests of whole clusters: a service that many tests share is started once."""

from __future__ import annotations

from pathlib import Path

from support.groups import group_of

ROOT = Path(__file__).parents[2]


def nodeids(folder: str) -> list[str]:
    files = sorted((ROOT / folder).glob("test_*.py"))
    assert files
    return [f"{file.relative_to(ROOT)}::test_{n}[a/b::c]" for file in files for n in range(2)]


def test_what_shares_a_service_is_one_group() -> None:
    assert {group_of(nodeid) for nodeid in nodeids("tests/ray/shared_service")} == {"tests/ray/shared_service"}


def test_a_file_is_a_group() -> None:
    """Its tests may share a service as well."""
    assert {group_of(nodeid) for nodeid in nodeids("tests/ray")} == {
        nodeid.partition("::")[0] for nodeid in nodeids("tests/ray")
    }


def test_chaos_is_dealt_out_test_by_test() -> None:
    assert [group_of(nodeid) for nodeid in nodeids("tests/chaos")] == nodeids("tests/chaos")
