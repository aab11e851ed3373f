"""Writes what Kubernetes is given of the monitoring: the dashboard, and the rules as Prometheus's operator takes them.

python deploy/monitoring/build.py            writes both into deploy/kubernetes/components/monitoring
python deploy/monitoring/build.py --check    exit status 1 if they are not what it would write
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from panels import ROWS, Panel

HERE = Path(__file__).parent
COMPONENT = HERE.parent / "kubernetes" / "components" / "monitoring"

_WIDTH = 24
_NUMBER = (6, 4)
_GRAPH = (8, 8)
_SOURCE = {"type": "prometheus", "uid": "${source}"}


def dashboard() -> dict[str, Any]:
    """Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in ROWS:
        place = {"x": 0, "y": top, "w": _WIDTH, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": row.question, "gridPos": place, "panels": []})
        top += 1
        for kind in (True, False):
            shown = [panel for panel in row.panels if panel.is_number == kind]
            top = _lay_out(shown, *(_NUMBER if kind else _GRAPH), top, panels)
    return {
        "uid": "headrace",
        "title": "headrace",
        "description": "Is it keeping up, is it losing or repeating, and what does it cost?",
        "tags": ["headrace", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_data_source(), *map(_variable, ("namespace", "model", "pool"))]},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def _lay_out(shown: list[Panel], width: int, height: int, top: int, panels: list[dict[str, Any]]) -> int:
    """Append panels from left to right; where the next line begins."""
    for number, panel in enumerate(shown):
        column = number * width % _WIDTH
        place = {"x": column, "y": top + number * width // _WIDTH * height, "w": width, "h": height}
        panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
    return top + -(-len(shown) * width // _WIDTH) * height


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.red_above is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.red_above}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.unit == "dateTimeAsIso":
        del defaults["min"]
    return {
        "type": "stat" if panel.is_number else "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _number_options(panel) if panel.is_number else _GRAPH_OPTIONS,
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend}
            for n, query in enumerate(panel.queries)
        ],
    }


def _number_options(panel: Panel) -> dict[str, Any]:
    return {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "none" if panel.red_above is None else "value",
        "graphMode": "area",
    }


_GRAPH_OPTIONS = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
    "tooltip": {"mode": "multi", "sort": "desc"},
}


def _data_source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(label: str) -> dict[str, Any]:
    """A choice of a label's values; all of them, and none of them where there is no Kubernetes."""
    metric = "ray_headrace_replicas" if label == "pool" else "ray_headrace_live_jobs"
    return {
        "name": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": f"label_values({metric}, {label})", "refId": label},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "sort": 1,
    }


def prometheus_rule() -> str:
    """The rules as an object of Prometheus's operator."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "headrace", "labels": {"app.kubernetes.io/part-of": "headrace", "release": "prometheus"}},
        "spec": yaml.safe_load((HERE / "rules.yaml").read_text("utf-8")),
    }
    head = "# Written by deploy/monitoring/build.py of deploy/monitoring/rules.yaml.\n"
    return head + yaml.safe_dump(rule, sort_keys=False, width=120, allow_unicode=True)


def main() -> int:
    """Write both files, or compare them."""
    files = {
        COMPONENT / "dashboard.json": json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n",
        COMPONENT / "prometheus-rule.yaml": prometheus_rule(),
    }
    if "--check" not in sys.argv:
        for file, text in files.items():
            file.write_text(text, "utf-8")
        return 0
    stale = [file.name for file, text in files.items() if not file.exists() or file.read_text("utf-8") != text]
    for name in stale:
        print(f"{name} is not what deploy/monitoring/build.py makes: run it", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
