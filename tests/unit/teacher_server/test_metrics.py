"""Metrics: what is counted, and that no label can grow without bound."""

from teacherfarm.teacher_server.metrics import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_teacher_batch_is_seen_in_all_three_histograms():
    metrics = Metrics()
    lane = metrics.lane("t")
    lane.teacher_batch(6, 0.25, 0.5)
    lane.teacher_batch(2, 0.05, 0.5)
    for name, total in (("batch_crops", 8), ("wait_seconds", 0.3), ("run_seconds", 1.0)):
        assert value(metrics, f"teacherfarm_{name}_count", teacher="t") == 2
        assert abs(value(metrics, f"teacherfarm_{name}_sum", teacher="t") - total) < 1e-9


def test_two_servers_in_one_process_count_apart():
    one, other = Metrics(), Metrics()
    one.labels.labels("t", "p").inc(5)
    assert value(one, "teacherfarm_labels_total", teacher="t", project="p") == 5
    assert value(other, "teacherfarm_labels_total", teacher="t", project="p") is None


def test_no_label_names_a_student_or_a_crop():
    metrics = Metrics()
    for metric in metrics.registry.collect():
        assert metric.name.startswith("teacherfarm_")
        assert metric.documentation
    labels = {
        label for collector in metrics.registry._collector_to_names for label in getattr(collector, "_labelnames", ())
    }
    assert labels == {"teacher", "project", "fault", "wire"}


def test_the_page_is_prometheus_text():
    metrics = Metrics()
    metrics.ready.labels("tiny").set(1)
    page = metrics.page().decode()
    assert '\nteacherfarm_teacher_ready{teacher="tiny"} 1.0\n' in page
    assert "# TYPE teacherfarm_faults_total counter" in page
