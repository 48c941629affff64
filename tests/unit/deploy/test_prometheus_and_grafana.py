"""What watches a farm: configuration and rules by Prometheus' own tool, the dashboard by what it promises."""

import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from teacherfarm.teacher_server.metrics import Metrics
from tests.prometheus_server import find_program
from tools.dashboard import DASHBOARD, as_text

ROOT = Path(__file__).resolve().parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULE_TESTS = Path(__file__).with_name("alerts_test.yml")

DASHBOARD_JSON = json.loads(DASHBOARD.read_text())
PANELS = [panel for panel in DASHBOARD_JSON["panels"] if panel["type"] != "row"]
RULES = [
    rule
    for name in ("rules.yml", "alerts.yml")
    for group in yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]
# What Triton's metrics page is documented to have.
TRITON = {"nv_inference_count", "nv_inference_request_success"}
TRITON |= {f"nv_inference_{part}_duration_us" for part in ("queue", "compute_infer")}


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run([find_program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configuration_is_clean():
    # It reads the rule files, too, and lints both.
    assert "FAILED" not in promtool("check", "config", "--lint=all", "--lint-fatal", PROMETHEUS / "prometheus.yml")
    for name in ("rules.yml", "alerts.yml"):
        promtool("check", "rules", "--lint=all", "--lint-fatal", PROMETHEUS / name)


def test_each_alert_fires_when_it_should_and_not_before():
    promtool("test", "rules", RULE_TESTS)


def test_no_alert_goes_untested():
    tested = RULE_TESTS.read_text()
    firing = set(re.findall(r"ALERTS\{alertname=\"(\w+)\", alertstate=\"firing\"", tested))
    firing |= set(re.findall(r"- alertname: (\w+)", tested))
    assert firing == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_what_happened_what_it_means_and_what_to_do(alert):
    assert alert["labels"]["severity"] in ("info", "warning", "critical")
    assert alert["annotations"].keys() == {"summary", "description", "action"}
    assert all(text.endswith((".", "it.")) for text in alert["annotations"].values())


def test_services_are_found_by_name_however_many_they_are():
    jobs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    found = {job["job_name"]: (job["dns_sd_configs"][0]["names"], job["dns_sd_configs"][0]["port"]) for job in jobs}
    assert found == {"gateway": (["gateway"], 7002), "triton": (["triton"], 8002)}


def names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:teacherfarm|nv)_\w+|\bteacherfarm:[\w:]+", expression))


def test_only_metrics_that_there_are_are_asked_for():
    known = {sample for metric in Metrics().registry.collect() for sample in series(metric)}
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for expression in [rule["expr"] for rule in RULES] + QUERIES:
        assert names(expression) <= known | recorded | TRITON, expression


def series(metric):
    match metric.type:
        case "counter":
            return [f"{metric.name}_total"]
        case "histogram":
            return [f"{metric.name}_{part}" for part in ("bucket", "sum", "count")]
        case _:
            return [metric.name]


def test_the_dashboard_is_current():
    assert as_text() == DASHBOARD.read_text(), "run: python -m tools.dashboard"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_explains_itself(panel):
    assert panel["description"].endswith(".")
    if panel["type"] == "text":
        assert "teacherfarm doctor" in panel["options"]["content"]
        return
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        grouped = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
        # A legend by a label that the query sums away would be empty.
        assert all(label in target["expr"] or "teacherfarm:" in target["expr"] for label in grouped)


def test_panels_fill_the_grid_and_hide_none_of_each_other():
    for one, other in itertools.combinations(DASHBOARD_JSON["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (one["title"], other["title"])
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD_JSON["panels"])
    assert len({panel["id"] for panel in DASHBOARD_JSON["panels"]}) == len(DASHBOARD_JSON["panels"])


def test_what_is_to_be_seen_is_seen():
    asked = {name for query in QUERIES for name in names(query)}
    assert {
        "teacherfarm_labels_total",
        "teacherfarm_joined_total",
        "teacherfarm_waiting_crops",
        "teacherfarm_wait_seconds_bucket",
        "teacherfarm_run_seconds_bucket",
        "teacherfarm_batch_crops_bucket",
        "teacherfarm_student_stall_ratio",
        "teacherfarm_endpoint_up",
        "teacherfarm_refusals_total",
        "teacherfarm_faults_total",
        "teacherfarm:teachers_missing",
        "teacherfarm:busy:ratio",
    } <= asked


def test_the_page_about_it_names_every_alert_and_row_and_no_metric_that_there_is_not():
    page = (ROOT / "docs" / "SEEING.md").read_text()
    table = page.partition("| severity | alerts |")[2].partition("##")[0]
    by_severity = dict(re.findall(r"^\| (\w+): [^|]+ \| ([^|]+) \|$", table, flags=re.MULTILINE))
    for severity, named in by_severity.items():
        alerts = {alert["alert"] for alert in ALERTS if alert["labels"]["severity"] == severity}
        assert set(named.split(", ")) == alerts
    assert len(by_severity) == 3
    rows = [panel["title"] for panel in DASHBOARD_JSON["panels"] if panel["type"] == "row"]
    shown = re.findall(r"^\| ([\w ]+) \|", page.partition("| row | what it answers |")[2], flags=re.MULTILINE)
    assert [row for row in shown if row in rows] == rows
    known = {sample for metric in Metrics().registry.collect() for sample in series(metric)}
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    assert names(page) <= known | recorded


def test_grafana_is_provisioned_with_what_the_dashboard_asks():
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    variable = DASHBOARD_JSON["templating"]["list"][0]
    assert (variable["type"], variable["query"]) == ("datasource", source["type"])
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "teacherfarm.yml").read_text())["providers"]
    compose = (ROOT / "docker-compose.yml").read_text()
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in compose
    assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in compose
    assert "./deploy/prometheus:/etc/prometheus:ro" in compose
