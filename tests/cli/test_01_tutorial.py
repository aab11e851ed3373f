"""The command line in four steps: submit a text, read an inbox, look at the lanes, run a file."""

from __future__ import annotations

from pathlib import Path

from support.command_line import Run, read_lines, write_lines
from support.service import PlainService


async def test_submit_prints_the_answer(echo_service: PlainService, headrace: Run) -> None:
    """`headrace submit MODEL TEXT` hands a job over, waits, and prints what came back."""
    ran = await headrace("submit", "echo", "water flows downhill")

    assert ran.status == 0
    assert "water flows downhill" in ran.out


async def test_a_program_reads_json(echo_service: PlainService, headrace: Run) -> None:
    """With `--json`, stdout is one object a line, and nothing else."""
    ran = await headrace("submit", "echo", "up", "down", "--json")

    assert [answer["output"] for answer in ran.objects] == ["up", "down"]


async def test_results_reads_an_inbox(echo_service: PlainService, headrace: Run) -> None:
    """A job may name an inbox, which somebody else reads: from the beginning, or from behind a cursor."""
    await headrace("submit", "echo", "first", "second", "--inbox", "my-service")

    both = (await headrace("results", "echo", "my-service", "--json")).objects
    assert [answer["output"] for answer in both] == ["first", "second"]
    rest = (await headrace("results", "echo", "my-service", "--after", both[0]["cursor"], "--json")).objects
    assert [answer["output"] for answer in rest] == ["second"]


async def test_status_shows_the_lanes(echo_service: PlainService, headrace: Run) -> None:
    """`headrace status` lists the models with their audit: submitted is finished plus live."""
    await headrace("submit", "echo", "a text")

    [model] = (await headrace("status", "--json")).last["models"]
    assert (model["model"], model["submitted"], model["ok"], model["live"]) == ("echo", 1, 1, 0)
    assert (model["lost"], model["doubled"]) == (0, 0)


async def test_batch_runs_a_file(echo_service: PlainService, headrace: Run, tmp_path: Path) -> None:
    """`headrace batch` answers every line of a file, and says how it went."""
    lines = [{"custom_id": f"text-{n}", "input": f"drop {n}"} for n in range(500)]
    source, output = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"

    ran = await headrace("batch", "echo", source, "-o", output, "--json")

    assert ran.status == 0
    assert (ran.last["total"], ran.last["done"], ran.last["failed"]) == (500, 500, 0)
    assert {line["custom_id"]: line["output"] for line in read_lines(output)} == {
        line["custom_id"]: line["input"] for line in lines
    }
