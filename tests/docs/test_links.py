"""Links between the project's own pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    """Those to files of the repository; what is on the network is not asked for."""
    targets = re.findall(r"\]\((?![a-z]+://)([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_there_are_links() -> None:
    """The pattern finds them."""
    assert len(re.findall(r"\]\([a-zA-Z/]+\.md\)", (ROOT / "README.md").read_text("utf-8"))) > 5
