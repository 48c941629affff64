"""Metrics: what is counted, and that no label can grow without bound."""

from teacherfarm.label_store.label_store import LayerStats
from teacherfarm.protos.messages import StudentReport
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


def test_buckets_count_everything_up_to_their_bound():
    metrics = Metrics()
    for num_crops in (1, 2, 3, 4, 5, 1000):
        metrics.lane("t").teacher_batch(num_crops, 0.0, 0.0)
    bucket = "teacherfarm_batch_crops_bucket"
    counts = {le: value(metrics, bucket, teacher="t", le=le) for le in ("1.0", "2.0", "4.0", "8.0", "128.0", "+Inf")}
    assert counts == {"1.0": 1, "2.0": 2, "4.0": 4, "8.0": 5, "128.0": 5, "+Inf": 6}


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
    metrics.students.note("s1", project="p", teacher="t", report=StudentReport(stall=0.5, wanted_per_s=10))
    metrics.endpoints.watch("t", lambda: {"triton:8001": True})
    metrics.busy.watch("t", lambda: 3.5)
    assert value(metrics, "teacherfarm_busy_slot_seconds_total", teacher="t") == 3.5
    labels |= {name for metric in metrics.registry.collect() for sample in metric.samples for name in sample.labels}
    metrics.store.watch(lambda: (LayerStats(layer="lmdb"), LayerStats(layer="redis", kept_bytes=-1)))
    labels |= {name for metric in metrics.registry.collect() for sample in metric.samples for name in sample.labels}
    # Endpoints are configured or resolved, reasons are classes of faults.
    assert labels - {"le"} == {"teacher", "project", "fault", "wire", "reason", "endpoint", "layer"}


def test_a_lane_remembers_what_its_load_is_made_of():
    lane = Metrics().lane("t")
    lane.teacher_batch(6, 0.25, 0.5)
    lane.teacher_batch(2, 0.05, 0.75)
    assert lane.crops == 8


def test_students_are_summed_up_by_project_and_teacher_and_go_with_their_sessions():
    metrics = Metrics()
    for session, project, stall, wanted in (("s1", "a", 0.2, 100), ("s2", "a", 0.6, 50), ("s3", "b", 0.0, 10)):
        report = StudentReport(stall=stall, wanted_per_s=wanted)
        metrics.students.note(session, project=project, teacher="t", report=report)
    stall, wanted = "teacherfarm_student_stall_ratio", "teacherfarm_student_wanted_crops_per_second"
    assert value(metrics, stall, project="a", teacher="t") == 0.4
    assert value(metrics, wanted, project="a", teacher="t") == 150
    metrics.students.note("s1", project="a", teacher="t", report=StudentReport(stall=0.0, wanted_per_s=0))
    metrics.students.forget("s2")
    metrics.students.forget("s3")
    metrics.students.forget("never told anything")
    assert value(metrics, stall, project="a", teacher="t") == 0.0
    assert value(metrics, stall, project="b", teacher="t") is None


def test_an_endpoint_that_vanishes_takes_its_series_along():
    metrics, endpoints = Metrics(), {"a:8001": True, "b:8001": False}
    metrics.endpoints.watch("t", lambda: endpoints)
    assert value(metrics, "teacherfarm_endpoint_up", teacher="t", endpoint="a:8001") == 1
    assert value(metrics, "teacherfarm_endpoint_up", teacher="t", endpoint="b:8001") == 0
    del endpoints["b:8001"]
    assert value(metrics, "teacherfarm_endpoint_up", teacher="t", endpoint="b:8001") is None


def test_layers_of_the_store_show_what_they_know():
    metrics = Metrics()
    assert value(metrics, "teacherfarm_store_up", layer="lmdb") is None
    layers = (
        LayerStats(layer="lmdb", kept_labels=3, kept_bytes=120, written=5, dropped=2, damaged=1),
        LayerStats(layer="redis", kept_labels=-1, kept_bytes=-1, why="gone"),
    )
    metrics.store.watch(lambda: layers)
    found = {
        name: value(metrics, f"teacherfarm_store_{name}", layer="lmdb")
        for name in ("up", "kept_labels", "kept_bytes", "written_total", "dropped_total", "damaged_total")
    }
    assert found == {
        "up": 1,
        "kept_labels": 3,
        "kept_bytes": 120,
        "written_total": 5,
        "dropped_total": 2,
        "damaged_total": 1,
    }
    assert value(metrics, "teacherfarm_store_up", layer="redis") == 0
    assert value(metrics, "teacherfarm_store_kept_bytes", layer="redis") is None


def test_the_page_is_prometheus_text():
    metrics = Metrics()
    metrics.ready.labels("tiny").set(1)
    page = metrics.page().decode()
    assert '\nteacherfarm_teacher_ready{teacher="tiny"} 1.0\n' in page
    assert "# TYPE teacherfarm_faults_total counter" in page
