"""The Grafana dashboard from its panels: ``python -m tools.dashboard`` writes deploy/grafana/dashboards/."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.dashboard_panels import PLAIN, RED, ROWS, Panel

DASHBOARD = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "dashboards" / "teacherfarm.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
GRID = 24


def dashboard() -> dict[str, Any]:
    """The whole dashboard as Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"h": 1, "w": GRID, "x": 0, "y": y}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        )
        y += 1
        x = 0
        for panel in row:
            if x + panel.width > GRID:
                x, y = 0, y + panel.height
            panels.append(_panel(panel, len(panels) + 1, {"h": panel.height, "w": panel.width, "x": x, "y": y}))
            x += panel.width
        y += row[-1].height
    return {
        "uid": "teacherfarm",
        "title": "teacherfarm",
        "description": "Teachers, the students that they feed, and whether there are enough of them.",
        "tags": ["teacherfarm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": [_firing_alerts()]},
        "panels": panels,
    }


def _variables() -> list[dict[str, Any]]:
    source: dict[str, Any] = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    chosen = [source]
    for name, metric in (("teacher", "teacherfarm_teacher_ready"), ("project", "teacherfarm_labels_total")):
        query = f"label_values({metric}, {name})"
        chosen.append(
            {
                "name": name,
                "label": name.capitalize(),
                "type": "query",
                "datasource": SOURCE,
                "query": {"query": query, "refId": name},
                "definition": query,
                "refresh": 2,
                "sort": 1,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"text": ["All"], "value": ["$__all"]},
            }
        )
    return chosen


def _firing_alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": RED,
        "expr": 'ALERTS{alertstate="firing", severity!="info"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{teacher}} {{project}} {{endpoint}} {{instance}}",
    }


def _panel(panel: Panel, number: int, place: Mapping[str, int]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "gridPos": place,
    }
    if panel.kind == "text":
        return {**shown, "options": {"mode": "markdown", "content": panel.text}}
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": [{"value": at, "color": color} for at, color in panel.steps]},
        "color": {"mode": "thresholds" if panel.kind in ("stat", "state-timeline") else "palette-classic"},
        "mappings": list(panel.mappings),
        "custom": _lines(panel) if panel.kind == "timeseries" else {},
    }
    if panel.most is not None:
        defaults["max"] = panel.most
    return {
        **shown,
        "datasource": SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + place_in_list),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
            }
            for place_in_list, (legend, query) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
    }


def _lines(panel: Panel) -> dict[str, Any]:
    return {
        "lineWidth": 1,
        "fillOpacity": 40 if panel.stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if len(panel.steps) > 1 else "off"},
    }


def _options(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case "stat":
            return {
                "colorMode": "value" if panel.steps is PLAIN else "background",
                "graphMode": "area" if panel.steps is PLAIN else "none",
                "textMode": "value_and_name" if any("{{" in legend for legend in panel.queries) else "value",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            }
        case "state-timeline":
            return {"showValue": "auto", "rowHeight": 0.8, "legend": {"showLegend": False}}
        case "heatmap":
            return {"calculate": False, "yAxis": {"unit": "none"}, "color": {"scheme": "Blues", "mode": "scheme"}}
        case _:
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }


def as_text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(as_text())
