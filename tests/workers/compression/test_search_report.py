"""The page of a search: one file that asks nobody for anything, readable by everybody."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from headrace_workers.compression.recipe import Quantize, Recipe
from headrace_workers.compression.search.front import Ended, Entry, Failed, Front
from headrace_workers.compression.search.latency_table import LatencyTable
from headrace_workers.compression.search.page import report_html, write_report
from headrace_workers.compression.search.served import LoadFigures, ServedFigures
from support import arithmetic_study

NODE = arithmetic_study.NODE.model_copy(update={"processor": "a <fast> processor", "isa": "amx"})


def entry(name: str, quality: float, speed: float, size: float, **more: object) -> Entry:
    fields = {
        "key": name,
        "name": name,
        "recipe": Recipe(stages=[Quantize()]),
        "fidelity": 1.0,
        "figures": {"drop": 1 - quality, "speed": speed, "size": size},
        "uses": [],
        "seconds": 1.0,
        "artifact": f"trials/{name}",
    }
    return Entry.model_validate(fields | more)


SERVED = ServedFigures(
    texts_per_s=1234.0,
    replicas=2,
    speedup=3.4,
    loads=[LoadFigures(texts_per_s=400, share=0.3, p50_ms=6.0, p99_ms=21.0)],
)
ENTRIES = [
    entry("int8", 0.998, 4.5, 0.26, on_front=True, served=SERVED),
    entry("student & co", 0.97, 20.0, 0.08, on_front=True),
    entry("poor", 0.96, 4.0, 0.3, fidelity=0.1),
]


def front(*entries: Entry, ended: Ended = "complete", **more: object) -> Front:
    return Front.model_validate(
        {
            "model": "mini<lm>",
            "source_sha256": "aa",
            "data_sha256": "bb",
            "seed": 0,
            "target": "speed>=4x, drop<=1%",
            "node": NODE,
            "original": [],
            "timings": LatencyTable(node=NODE),
            "entries": list(entries),
            "chosen": entries[0].key if entries else "",
            "ended": ended,
        }
        | more
    )


class Page(HTMLParser):
    """Looks at tags: which there are, with what attributes, and that each is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def texts_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html.partition("<body>")[2]).split())


def test_it_says_what_was_chosen_and_why() -> None:
    text = texts_of(report_html(front(*ENTRIES)))
    assert "The target is met by “int8”." in text
    assert "3 candidates measured" in text
    assert "everything promising was tried" in text
    assert "int8 (chosen) yes 99.8% 4.5× 26.0% 100% of the steps 1,234 texts/s, 3.4× 6 / 21 ms at 30%" in text
    assert "poor no 96.0% 4× 30.0% 10% of the steps – –" in text


def test_what_is_missing_is_said() -> None:
    missed = front(*ENTRIES, shortfalls=["speed is 3.4x, 0.6x away from speed>=4x"], ended="budget")
    text = texts_of(report_html(missed))
    assert "not met. Nearest is “int8”: speed is 3.4x, 0.6x away from speed&gt;=4x." in text
    assert "the budget ended it; run again, it goes on" in text


def test_nothing_is_loaded_from_anywhere() -> None:
    """No address, no script, and a policy that would forbid them."""
    html = report_html(front(*ENTRIES))
    page = Page(html)
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any({"src", "href"} & set(attributes) for _, attributes in page.tags)
    assert "http" not in html.replace("http-equiv", "")
    assert "default-src 'none'" in html


def test_it_is_for_everybody() -> None:
    """A language, plots described, headers of rows and columns, both colour schemes, no meaning by colour."""
    html = report_html(front(*ENTRIES))
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert ("html", {"lang": "en"}) in page.tags
    assert "prefers-color-scheme: dark" in html
    plots = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(plots) == 2
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert tags.count("desc") == 2
    assert {attributes["scope"] for tag, attributes in page.tags if tag == "th"} == {"row", "col"}
    assert tags.count("rect") == 2  # the chosen one has a shape of its own
    assert tags.count("circle") == 4


def test_marks_lie_within_their_plots() -> None:
    for svg in re.findall(r"<svg.*?</svg>", report_html(front(*ENTRIES)), re.DOTALL):
        root = ElementTree.fromstring(svg)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        circles = root.findall("circle")
        assert len(circles) == 2
        assert all(0 < float(c.attrib["cx"]) < width and 0 < float(c.attrib["cy"]) < height for c in circles)
        better, worse = sorted(circles, key=lambda circle: float(circle.attrib["cy"]))
        assert "student" in "".join(better.itertext())  # the better one stands higher
        assert "poor" in "".join(worse.itertext())


def test_names_are_text_and_never_markup() -> None:
    html = report_html(front(*ENTRIES, failed=[Failed(name="<b>", reason="NaN in <weights>")]))
    assert "mini&lt;lm&gt;" in html
    assert "student &amp; co" in html
    assert "NaN in &lt;weights&gt;" in html
    assert "<b>" not in html


@pytest.mark.parametrize(
    "entries",
    [
        (),
        ENTRIES[:1],
        [ENTRIES[0], entry("twin", 0.998, 4.5, 0.26)],
        [entry("nothing", 1.0, 1.0, 1.0)],
        [entry("unmeasured", 1.0, 1.0, 1.0, figures={"speed": 2.0})],
    ],
)
def test_fronts_of_few(entries: list[Entry]) -> None:
    """None at all, a single one, equals, and one that lacks figures."""
    page = Page(report_html(front(*entries)))
    assert page.open == []


def test_it_is_written_as_a_whole(tmp_path: Path) -> None:
    path = write_report(front(*ENTRIES), tmp_path)
    assert path.read_text("utf-8") == report_html(front(*ENTRIES))
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
