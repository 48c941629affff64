import base64
import io
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from teacherfarm.student.accounts import ClientStats
from teacherfarm.student.evaluation import Evaluation
from teacherfarm.student.recipes.report import ReportData, write_report
from teacherfarm.student.recipes.report_charts import Series, confidences, line_chart, nice_ticks, reliability
from teacherfarm.student.recipes.run_log import PassRow
from teacherfarm.student.tally import Tally
from tests.unit.student.fake_teacher import make_labels

torch.set_num_threads(1)
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that what is opened is closed, and keeps the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.attributes = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def row(epoch, **others):
    figures = {
        "steps": 10 * epoch,
        "learning_rate": 0.1 / epoch,
        "loss": 2.0 / epoch,
        "images_per_s": 876.4,
        "stall": 0.0123,
        "unanswered": 0,
        "val_loss": 1.5,
        "val_top1": 0.4,
        "val_top5": 0.8,
    }
    return PassRow(epoch=epoch, **{**figures, **others})


def tallied(num_classes, crops=200):
    generator = np.random.default_rng(1)
    targets = generator.integers(0, num_classes, crops)
    teacher = generator.normal(size=(crops, num_classes)) + 3 * np.eye(num_classes)[targets]
    student = generator.normal(size=(crops, num_classes)) + 2 * np.eye(num_classes)[targets]
    tally = Tally(num_classes)
    tally.count(torch.tensor(student), torch.tensor(targets), make_labels(teacher))
    return tally


RESULT = Evaluation(
    crops=200, top1=0.731, top5=0.95, loss=0.81, calibration_error=0.04, agreement=0.77, teacher_top1=0.9
)
CLIENT = ClientStats(crops_answered=1000, bytes_sent=3_080_000, bytes_received=27_000, sessions=2, crops_resent=64)


def written(tmp_path, **others):
    fields = {"title": "kd: student < teacher", "passes": [row(1), row(2)], "result": RESULT, **others}
    path = write_report(tmp_path, ReportData(**fields))
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    return path.read_text()


def test_a_page_with_everything(tmp_path):
    html = written(
        tmp_path,
        parts=[{"ce": 1.0, "kd": 1.0}, {"ce": 0.4, "kd": 0.6}],
        tally=tallied(4),
        classes=("ant & bee", "cat", "dog", "elk"),
        client=CLIENT,
        wire="zmq://127.0.0.1:7001",
        stall="student-bound: waited 0.1 of 9.9 s",
        facts={"method": "kd"},
        settings="temperature: 4.0\n",
        notes=["Mind the step."],
    )
    page = Page(html)
    for words in (
        "kd: student < teacher",
        "73.1 %",
        "teacher 90.0 %",
        "77.0 %",
        "876",
        "1.2 %",
        "3.11 kB",
        "3.08 kB",
        "27 bytes",
        "ant & bee",
        "Mind the step.",
        "student-bound: waited",
        "temperature: 4.0",
        "crops sent again",
        "ce",
    ):
        assert words in page.text, words
    assert "prefers-color-scheme: dark" in html


def test_names_are_text_wherever_they_stand(tmp_path):
    hostile = '"><script>alert(1)</script>'
    classes = tuple(f"{hostile}{number}" for number in range(3))
    data = {"title": hostile, "settings": hostile, "notes": [hostile], "facts": {hostile: hostile}, "stall": hostile}
    html = written(tmp_path, **data, tally=tallied(3), classes=classes, parts=[{hostile: 1.0, "b": 1.0}] * 2)
    assert "<script" not in html
    assert hostile in "".join(Page(html).texts)
    assert any(hostile in value for name, value in Page(html).attributes if name == "title")


def test_a_folder_name_that_is_no_utf8_is_no_obstacle(tmp_path):
    classes = ("caf\udce9", "b", "c")  # a folder named in Latin-1, as Python reads it
    assert "caf\\udce9 taken for b" in written(tmp_path, tally=tallied(3), classes=classes)


def test_phases_have_parts_of_their_own(tmp_path):
    html = written(tmp_path, parts=[{"map": 1.0, "ce": 1.0}, {"ce": 0.5}])
    assert "map: 1 at 1 epochs" in html
    assert "map: " not in html.replace("map: 1 at 1 epochs", "")
    assert "ce: 0.5 at 2 epochs" in html


def test_nothing_is_loaded_from_anywhere(tmp_path):
    html = written(tmp_path, tally=tallied(30), client=CLIENT, wire="grpc://farm:7000")
    assert "<script" not in html
    assert "@import" not in html
    assert "url(" not in html
    addresses = [value for name, value in Page(html).attributes if name in ("src", "href", "srcset", "data")]
    assert addresses
    assert all(address.startswith("data:image/png;base64,") for address in addresses)


def test_what_is_not_known_is_left_out(tmp_path):
    nothing = Evaluation(crops=0, top1=math.nan, top5=math.nan, loss=math.nan, calibration_error=math.nan)
    blind = [row(1, val_loss=math.nan, val_top1=math.nan, val_top5=math.nan)]
    page = Page(written(tmp_path, result=nothing, passes=blind))
    assert not re.search(r"\bnan\b", page.text.lower())
    assert "top-1" not in page.text.replace("val_top1", "")
    assert "Confusion" not in page.text
    assert "Loss in training" in page.text


def test_a_run_without_any_pass_still_has_a_page(tmp_path):
    assert "73.1 %" in Page(written(tmp_path, passes=[])).text


def test_confusion_of_many_classes_is_a_picture(tmp_path):
    tally = tallied(30)
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', written(tmp_path, tally=tally))[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
    counts = tally.student.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    assert pixels.shape == (30, 30, 4)
    assert np.abs((pixels[..., 3] / 255.0) ** 2 - shares).max() < 0.01
    assert (pixels[0, 0, :3] != pixels[0, 1, :3]).any()


def test_few_classes_have_their_numbers(tmp_path):
    tally = tallied(3)
    html = written(tmp_path, tally=tally, classes=("a", "b", "c"))
    counts = tally.student.confusion
    for one, name in enumerate("abc"):
        for other, taken in enumerate("abc"):
            assert f"{name} taken for {taken}: {counts[one, other]} of {counts[one].sum()}" in html


def points(svg):
    """The dots of a chart: name -> [(x, y)]."""
    tree = ElementTree.fromstring(re.search("<svg.*</svg>", svg)[0])
    found = {}
    for circle in tree.iter("circle"):
        place = (float(circle.get("cx")), float(circle.get("cy")))
        found.setdefault(circle.find("title").text.partition(":")[0], []).append(place)
    return found


def test_curves_lie_where_their_values_are():
    one = Series(name="one", values=[0.0, 5.0, math.nan, 10.0], colour=0)
    other = Series(name="other", values=[5.0, 5.0, 5.0, 5.0], colour=1)
    svg = line_chart("title", [1, 2, 3, 4], [one, other], levels=[("level", 5.0), ("none", math.nan)])
    found = points(svg)
    assert len(found["one"]) == 3  # a gap for what is no number
    (x0, low), (_, middle), (x1, high) = found["one"]
    assert high < middle < low
    assert middle == pytest.approx((low + high) / 2)
    assert {y for _, y in found["other"]} == {middle}
    assert (x0, x1) == (found["other"][0][0], found["other"][3][0])
    level = re.search(r'<line class="level" x1="[\d.]+" y1="([\d.]+)"', svg)[1]
    assert float(level) == pytest.approx(middle)
    assert "none" not in svg


def test_reliability_is_right_over_sure():
    bins = np.zeros((3, 15))
    bins[:, 14] = 10, 9.5, 8  # 95 % sure, 80 % right
    svg = reliability("title", [("student", bins, 0)])
    assert "95.0 % sure, 80.0 % right (10 crops)" in svg
    assert len(points(svg)["student"]) == 1
    below = re.findall(r'text-anchor="middle">([^<]+)<', confidences("title", [("student", bins, 0)]))
    assert below == ["20", "40", "60", "80", "confidence, %"]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 1], [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ([3, 97], [0, 20, 40, 60, 80, 100]),
        ([5, 5], [0, 2, 4, 6, 8, 10]),
        ([0, 0], [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ([-2, -2], [-4, -3, -2, -1, 0]),
    ],
)
def test_ticks_are_round_and_hold_the_values(values, ticks):
    assert nice_ticks(values) == pytest.approx(ticks)
