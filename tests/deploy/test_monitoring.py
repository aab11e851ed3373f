"""Dashboard, rules and runbook: they name what is really declared, and each alert fires where it should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from typer.main import get_command

from deploy.checks import findings
from deploy.kustomization import KUBERNETES, Object, overlay, rendered
from deploy.manifests import Manifests
from headrace.cli.app import application
from headrace.telemetry.metric_names import EXPORT_PREFIX, METRICS, Kind, Metric

ROOT: Final = Path(__file__).parents[2]
MONITORING: Final = ROOT / "deploy" / "monitoring"
COMPONENT: Final = KUBERNETES / "components" / "monitoring"
RUNBOOK: Final = (ROOT / "docs" / "runbook.md").read_text("utf-8")

RULES: Final[list[Object]] = [
    rule
    for group in yaml.safe_load((MONITORING / "rules.yaml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS: Final = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED: Final = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
DASHBOARD: Final = json.loads((COMPONENT / "dashboard.json").read_text("utf-8"))
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS: Final = [
    *(rule["expr"] for rule in RULES),
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
]

_ADDED: Final = {"namespace", "instance", "le"}
"""Labels that no metric declares: those that a scrape adds, and that of buckets."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="there is no promtool (Debian: prometheus)"
)


# -- names ----------------------------------------------------------------------------------------------------------


def declared(exported: str) -> Metric | None:
    """The metric behind a name in Prometheus, which of a histogram has three series."""
    name = exported.removeprefix(EXPORT_PREFIX)
    if name in METRICS and METRICS[name].kind is not Kind.HISTOGRAM:
        return METRICS[name]
    stem = re.sub(r"_(bucket|sum|count)$", "", name)
    return METRICS[stem] if stem != name and stem in METRICS and METRICS[stem].kind is Kind.HISTOGRAM else None


def undeclared(expr: str) -> Iterator[str]:
    """Metrics and labels of an expression that nobody exports."""
    labels = set(_ADDED)
    for name in re.findall(r"\bray_\w+", expr):
        metric = declared(name)
        if metric is None:
            yield name
        else:
            labels.update(metric.labels)
    for name in re.findall(r"\b\w+:headrace_\w+:\w+", expr):
        if name not in RECORDED:
            yield name
        else:
            labels.update(label for label in ("model", "pool") if label in RECORDED[name])
    used = [label for listed in re.findall(r"(?:by|on|without) \(([^)]*)\)", expr) for label in listed.split(",")]
    used += re.findall(r'(\w+)=~?"', expr)
    yield from sorted({label.strip() for label in used} - labels)


def test_every_metric_and_label_is_declared() -> None:
    """In rules and panels; a metric that is renamed is found here."""
    assert {name for expr in EXPRESSIONS for name in undeclared(expr)} == set()
    assert len(EXPRESSIONS) > 60


@pytest.mark.parametrize(
    ("expr", "found"),
    [
        ("rate(ray_headrace_answered_total[5m])", ["ray_headrace_answered_total"]),
        ("sum(ray_headrace_wait_seconds)", ["ray_headrace_wait_seconds"]),
        ("sum(ray_headrace_replicas_sum)", ["ray_headrace_replicas_sum"]),
        ("sum by (model, pool) (ray_headrace_waiting_jobs)", ["pool"]),
        ('ray_headrace_kv_pages{states="free"}', ["states"]),
        ("model:headrace_no_such_thing:sum", ["model:headrace_no_such_thing:sum"]),
    ],
)
def test_what_is_not_declared_is_found(expr: str, found: list[str]) -> None:
    """The test above can fail."""
    assert list(undeclared(expr)) == found


def test_every_metric_is_looked_at() -> None:
    """Whatever is exported is on the dashboard."""
    shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    assert [name for name in METRICS if EXPORT_PREFIX + name not in shown] == []


@pytest.mark.parametrize("rule", [rule for rule in RULES if "alert" in rule], ids=lambda rule: rule["alert"])
def test_a_summary_names_labels_that_the_alert_has(rule: Object) -> None:
    """Else it says nothing, in the middle of a sentence."""
    grouped = {label.strip() for listed in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in listed.split(",")}
    recorded = {label for name in RECORDED if name in rule["expr"] for label in name.partition(":")[0].split("_")}
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= grouped | recorded


# -- the dashboard --------------------------------------------------------------------------------------------------


def test_what_kubernetes_is_given_is_what_is_written_here() -> None:
    """Dashboard and PrometheusRule are made of `panels.py` and `rules.yaml`."""
    done = subprocess.run(
        [sys.executable, "-B", MONITORING / "build.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_each_panel_says_what_it_shows_and_in_which_unit() -> None:
    """And each line of it has a name."""
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Is it keeping up?", "Is it losing or repeating?", "What does it cost?"]
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == [
        "source", "namespace", "model", "pool",
    ]  # fmt: skip


def test_no_panel_covers_another() -> None:
    """Each square of the grid belongs to one, and ids are unique."""
    squares: list[tuple[int, int]] = []
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        squares += [(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])]
    assert len(squares) == len(set(squares))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


# -- the rules ------------------------------------------------------------------------------------------------------


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_each_alert_fires_where_it_should() -> None:
    """By Prometheus's own evaluation, over series that were made up."""
    promtool("test", "rules", MONITORING / "rules_test.yaml")


def test_each_alert_has_a_scenario() -> None:
    """In which it fires."""
    scenarios = (MONITORING / "rules_test.yaml").read_text("utf-8")
    assert [name for name in ALERTS if f'alertname="{name}"' not in scenarios and f": {name}\n" not in scenarios] == []


@needs_promtool
def test_prometheus_understands_the_panels(tmp_path: Path) -> None:
    """Each query, with values for Grafana's variables."""
    queries = [target["expr"].replace("$__rate_interval", "5m") for panel in PANELS for target in panel["targets"]]
    rules = [{"record": f"panel:{n}", "expr": re.sub(r"\$\w+", ".*", query)} for n, query in enumerate(queries)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


# -- the runbook ----------------------------------------------------------------------------------------------------


def sections() -> dict[str, str]:
    """What the runbook says of each alert."""
    parts = re.split(r"^## (Headrace\w+)$", RUNBOOK, flags=re.M)
    return {name: text.partition("\n## ")[0] for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_each_alert_has_its_section_and_leads_to_it() -> None:
    """And there is no section of an alert that is none."""
    assert sorted(sections()) == sorted(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"].endswith(f"docs/runbook.md#{name.lower()}")
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


def test_each_section_says_what_it_means_what_to_look_at_and_what_to_do() -> None:
    for name, text in sections().items():
        for part in ("**It means**", "**Look at**", "**Do**"):
            assert text.count(part) == 1, (name, part)


def unknown_commands(text: str) -> list[str]:
    """Commands of ours in a text that do not exist, or not with those options."""
    group: Any = get_command(application())
    found = []
    for line in re.findall(
        r"headrace ([a-z][^\n`|#&;]*)", "\n".join(re.findall(r"`[^`]+`|^ {0,4}headrace .*$", text, re.M))
    ):
        words = line.split()
        command = group.get_command(group.make_context("headrace", ["status"]), words[0])
        if command is not None and hasattr(command, "commands"):
            command = command.commands.get(words[1]) if len(words) > 1 else None
        known = {option for parameter in command.params for option in parameter.opts} if command is not None else set()
        if command is None or {word.partition("=")[0] for word in words if word.startswith("-")} - known:
            found.append(line)
    return found


def test_each_command_in_it_exists() -> None:
    """With its options."""
    assert unknown_commands(RUNBOOK) == []
    assert RUNBOOK.count("headrace ") > 20
    assert unknown_commands("`headrace topp --once`, `headrace status --jsonn`") == ["topp --once", "status --jsonn"]


# -- Kubernetes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def monitored(tmp_path: Path) -> Path:
    """The overlay `cpu` with the component, as its user would add it."""
    tree = Path(shutil.copytree(KUBERNETES, tmp_path / "kubernetes"))
    file = tree / "overlays" / "cpu" / "kustomization.yaml"
    line = "  - ../../components/disruption-budgets\n"
    text = file.read_text()
    assert line in text
    file.write_text(text.replace(line, f"{line}  - ../../components/monitoring\n"))
    return file.parent


def test_an_overlay_takes_the_component_by_one_line(monitored: Path) -> None:
    """Nothing else is changed by it."""
    objects = rendered(monitored)
    ours = [found for found in objects if found["kind"] in ("PodMonitor", "PrometheusRule")]
    maps = [found for found in objects if found["metadata"]["name"].startswith("headrace-dashboard-")]
    assert [found["metadata"]["namespace"] for found in ours + maps] == ["headrace"] * 3
    assert maps[0]["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(maps[0]["data"]["headrace.json"]) == DASHBOARD
    rest = [found for found in objects if found not in ours + maps]
    assert rest == overlay("cpu")
    assert findings([*rest, *maps]) == []


def test_every_ray_pod_is_scraped(monitored: Path) -> None:
    """By its labels; and the network policies let Prometheus in (`checks/network.py`)."""
    manifests = Manifests(rendered(monitored))
    [monitor] = manifests.of("PodMonitor")
    selector = monitor["spec"]["selector"]
    [expression] = selector["matchExpressions"]
    labelled = [pod for pod in manifests.pods if selector["matchLabels"].items() <= pod.labels.items()]
    scraped = [pod.name for pod in labelled if pod.labels.get(expression["key"]) in expression["values"]]
    assert scraped == [pod.name for pod in manifests.ray_pods]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
def test_kubectl_makes_the_same_of_it(monitored: Path) -> None:
    """Label and all."""
    done = subprocess.run(["kubectl", "kustomize", monitored], capture_output=True, text=True, check=True)
    there = {found["kind"]: found for found in yaml.safe_load_all(done.stdout)}
    here = {found["kind"]: found for found in rendered(monitored)}
    for kind in ("PodMonitor", "PrometheusRule"):
        assert there[kind] == here[kind]
