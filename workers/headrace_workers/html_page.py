"""A report as a page of HTML: one file that asks nobody for anything, light or dark as the reader is."""

from __future__ import annotations

from html import escape
from typing import Final

__all__ = ["html_page"]

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #5c6670; --line: #c9d1d9; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0f1318; --ink: #e6edf3; --faint: #9aa6b2; --line: #3a434d; }
}
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 76rem; padding: 0 1rem; }
svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: start; font-weight: 600; padding: .5rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: end; white-space: nowrap; }
th:first-child { text-align: start; }
"""


def html_page(title: str, body: str, *, style: str = "") -> str:
    """The page.

    Args:
        title: plain text.
        body: HTML of what the page shows.
        style: CSS beside that of text and tables; may use the colours `--paper`, `--ink`, `--faint` and `--line`.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
