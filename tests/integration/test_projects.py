"""Projects of a real server, over both wires: keys, allowances, and a file that changes under open sessions."""

import itertools
import logging
import signal
import threading
import time
from collections import deque
from contextlib import ExitStack

import numpy as np
import pytest

from teacherfarm import cli
from teacherfarm.protos import faults
from teacherfarm.protos.messages import SliceFault, SliceLabels, Welcome
from teacherfarm.student import TeacherClient, Timeouts
from teacherfarm.student.listing import list_teachers
from teacherfarm.teacher_server.projects.api_keys import digest_of
from tests.farm_process import wait_for
from tests.raw_student import hello, raw_student, slice_header
from tests.scripted_farm import make_crops, right_classes

SOON = Timeouts(connect_s=10.0)


@pytest.fixture
def projects(tmp_path):
    """``projects.write(NAME={...}, ...)``: the projects file, each project with the key "key of NAME"."""

    class Projects:
        file = tmp_path / "projects.toml"

        def write(self, **tables):
            text = ""
            for name, table in tables.items():
                values = {"keys": [digest_of(f"key of {name}")]} | table
                text += "".join([f"[projects.{name}]\n", *(f"{key} = {value!r}\n" for key, value in values.items())])
            self.file.write_text(text)

    return Projects()


@pytest.fixture
def farm(projects, start_scripted):
    """``farm(NAME={...}, flags=[...])`` starts a scripted teacher's server with these projects."""

    def start(*flags, **tables):
        projects.write(**tables)
        return start_scripted("--projects", str(projects.file), *flags)

    return start


def reload(farm):
    """SIGHUP, and wait until the server has read its file."""
    before = farm.log().count("project(s) from") + farm.log().count("stay as they were")
    farm.signal(signal.SIGHUP)
    wait_for(lambda: farm.log().count("project(s) from") + farm.log().count("stay as they were") > before)


def address(farm, wire):
    return getattr(farm, wire)


def client(farm, wire, project, **options):
    return TeacherClient(address(farm, wire), api_key=f"key of {project}", timeouts=SOON, **options)


def assert_labelled(teacher, seed=1, num_crops=8):
    crops = make_crops(num_crops, seed)
    assert (teacher.label(crops).top1 == right_classes(crops, 10)).all()


def test_keys_that_are_not_valid(farm, projects, wire):
    server = farm(one={}, two={"keys": []})
    words = set()
    for key in ("", "wrong", "key of two", "key of one ", digest_of("key of one")):
        with pytest.raises(faults.Unauthenticated) as caught:
            TeacherClient(address(server, wire), api_key=key, timeouts=SOON).connect()
        words.add(str(caught.value))
        with pytest.raises(faults.Unauthenticated):
            list_teachers(address(server, wire), api_key=key)
    assert len(words) == 2, "one sentence for no key, one for all the others"
    with client(server, wire, "one") as teacher:
        assert_labelled(teacher)
    assert server.metric("teacherfarm_refusals_total", project="-", reason="key") == 10
    assert "key of" not in server.log()


def test_a_key_made_by_the_command_opens_the_farm_and_nobody_shows_it(
    farm, projects, wire, capsys, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    server = farm(one={})
    assert cli.main(["keys", "create", "new", "--projects", str(projects.file)]) == 0
    key = capsys.readouterr().out.strip()
    monkeypatch.setenv("TEACHERFARM_API_KEY", key)
    assert cli.main(["teachers", address(server, wire)]) == 1
    assert "Unauthenticated" in capsys.readouterr().err
    reload(server)
    assert cli.main(["teachers", address(server, wire)]) == 0
    said = capsys.readouterr()
    assert "scripted  ready" in said.out
    with TeacherClient(address(server, wire), timeouts=SOON) as teacher:
        assert_labelled(teacher)
        assert key not in repr(teacher) + repr(teacher._core)
    everything = said.out + said.err + caplog.text + server.log() + server.get("/metrics")[1] + server.get("/")[1]
    assert key.removeprefix("tf_") not in everything
    assert server.metric("teacherfarm_labels_total", project="new") == 8


def test_a_teacher_that_is_not_allowed(farm, wire):
    server = farm(one={"teachers": ["scripted"]}, other={"teachers": ["vit-*"]})
    with pytest.raises(faults.NotAllowed, match="'other' may not use a teacher 'scripted'; none that it may use is"):
        client(server, wire, "other", teacher="scripted").connect()
    assert list_teachers(address(server, wire), api_key="key of other") == []
    with client(server, wire, "one", teacher="scripted") as teacher:
        assert_labelled(teacher)


def test_too_many_streams_are_told_to_come_back_and_do(farm, wire):
    server = farm(one={"streams": 1})
    first, second = client(server, wire, "one"), client(server, wire, "one")
    first.connect()
    waiting = threading.Thread(target=second.connect)
    waiting.start()
    wait_for(lambda: server.metric("teacherfarm_refusals_total", project="one", reason="streams") == 1)
    assert waiting.is_alive()
    first.close()
    waiting.join(20)
    assert_labelled(second)
    second.close()


def test_a_session_that_cannot_be_had_in_time_says_why(farm, wire):
    server = farm(one={"streams": 1})
    with (
        client(server, wire, "one"),
        pytest.raises(faults.QuotaExceeded, match=r"within 0\.5 s: project 'one' has 1 of 1"),
    ):
        TeacherClient(address(server, wire), api_key="key of one", timeouts=Timeouts(connect_s=0.5)).connect()


def hungry(teacher, seconds, batch=32):
    """Crops/s of a student that asks for as much as it may."""
    batches = [make_crops(batch, seed) for seed in range(8)]
    endless = itertools.cycle(batches)
    waiting = deque((teacher.submit(crops), crops) for crops in itertools.islice(endless, 1024 // batch))
    answered, started_s, now_s = -batch, 0.0, 0.0
    while not started_s or now_s - started_s < seconds:
        future, crops = waiting.popleft()
        assert (future.result().top1 == right_classes(crops, 10)).all()
        answered, now_s = answered + batch, time.monotonic()
        started_s = started_s or now_s
        crops = next(endless)
        waiting.append((teacher.submit(crops), crops))
    return answered / (now_s - started_s)


def test_a_rate_is_kept_to_and_reached_without_a_storm_of_refusals(farm, wire):
    server = farm(paced={"crops_per_second": 1000})
    with client(server, wire, "paced", window=1024) as teacher:
        rate = hungry(teacher, 3.0)
    assert 900 < rate < 1100
    assert server.metric("teacherfarm_refusals_total", project="paced") == 0


def test_many_sessions_of_one_rate_reach_it_and_are_seldom_refused(farm, wire):
    """More sessions than the rate has slices for: one slice each is longer than what the server holds."""
    server = farm(paced={"crops_per_second": 160})
    with ExitStack() as stack:
        students = [stack.enter_context(client(server, wire, "paced")) for _ in range(8)]
        answers = [student.submit(make_crops(32, seed)) for seed in range(8) for student in students]

        def counted():
            figures = [server.metric(f"teacherfarm_{name}_total", project="paced") for name in ("labels", "refusals")]
            return time.monotonic(), *figures

        wait_for(lambda: counted()[1] > 200)
        before_s, labels, refusals = counted()
        wait_for(lambda: counted()[1] > labels + 500)
        after_s, more_labels, more_refusals = counted()
        assert (more_labels - labels) / (after_s - before_s) == pytest.approx(160, rel=0.15)
        assert (more_refusals - refusals) / (after_s - before_s) < 2 * len(students)
        for answer in answers:
            answer.cancel()


def test_crops_in_flight_bound_a_hungry_student_that_is_served_all_the_same(farm, wire):
    server = farm("--seconds-per-crop", "0.001", few={"crops_in_flight": 24})
    with client(server, wire, "few", window=1024) as teacher:
        answers, most = [teacher.submit(make_crops(32, seed)) for seed in range(16)], 0
        while not answers[-1].done():
            most = max(most, server.metric("teacherfarm_admitted_crops"))
        assert_labelled(teacher)
    assert 0 < most <= 24
    assert server.metric("teacherfarm_refusals_total", project="few") == 0


def test_a_student_that_sends_more_than_its_quota_gets_a_time_to_come_back(farm, wire):
    """The wire spoken by hand, without a client that keeps to its window."""
    server = farm(paced={"crops_per_second": 4})
    crop = make_crops(1, 1).tobytes()
    with raw_student(address(server, wire)) as student:
        student.send(hello(api_key="key of paced"))
        welcome = student.receive()[0]
        assert isinstance(welcome, Welcome)
        assert welcome.window_crops < 64
        most = welcome.slice_crops
        student.send(slice_header(1, most), crop * most)
        assert isinstance(student.receive()[0], SliceLabels)
        student.send(slice_header(2, 1, taken_crops=most), crop)
        answer = student.receive()[0]
        assert isinstance(answer, SliceFault)
        assert type(answer.fault) is faults.QuotaExceeded
        assert "'paced' has used up its 4 crops per second" in str(answer.fault)
        assert most / 4 - 3 < answer.fault.retry_after_s < most / 4
        assert answer.num_crops == 1, "of the slice, not of the session"


def test_a_reload_drops_no_stream_and_acts_on_open_sessions(farm, projects, wire):
    server = farm(one={}, two={})
    with client(server, wire, "one") as one, client(server, wire, "two") as two:
        assert_labelled(one)
        assert_labelled(two)
        projects.write(one={"crops_per_second": 400}, two={"weight": 3})
        reload(server)
        rate = hungry(one, 2.0)
        assert 300 < rate < 500
        assert_labelled(two)
        projects.write(one={}, two={"weight": 3}, three={})
        reload(server)
        assert hungry(one, 0.5) > 1000
        with client(server, wire, "three") as three:
            assert_labelled(three)
        assert (one.stats.sessions, two.stats.sessions) == (1, 1)


def ended_by(teacher):
    """The fault that ends a client's session: comes by itself."""
    wait_for(lambda: teacher._core._fatal is not None)
    with pytest.raises(faults.TeacherFarmFault) as caught:
        teacher.label(make_crops(1, 1))
    return caught.value


def test_sessions_of_a_revoked_key_end_with_a_clear_fault_and_no_others(farm, projects, wire):
    server = farm(one={}, two={}, three={})
    with client(server, wire, "one") as one, client(server, wire, "two") as two, client(server, wire, "three") as three:
        for teacher in (one, two, three):
            assert_labelled(teacher)
        projects.write(one={"keys": [digest_of("another")]}, two={}, three={"teachers": ["vit-*"]})
        reload(server)
        revoked, foreign = ended_by(one), ended_by(three)
        assert type(revoked) is faults.Unauthenticated
        assert "this session's API key was revoked" in str(revoked)
        assert type(foreign) is faults.NotAllowed
        assert "'three' may no longer use teacher 'scripted'" in str(foreign)
        assert_labelled(two)
        assert two.stats.sessions == 1
    with pytest.raises(faults.Unauthenticated, match="does not accept this API key"):
        client(server, wire, "one").connect()
    assert server.metric("teacherfarm_sessions") == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[projects.one]\nweight = 'much'\n", "line 2: weight of project 'one' must be a number, got 'much'"),
        ("[projects.one\n", "is not TOML"),
        (None, "cannot read the projects file"),
    ],
)
def test_a_broken_file_changes_nothing(farm, projects, wire, text, words):
    server = farm(one={})
    with client(server, wire, "one") as teacher:
        assert_labelled(teacher)
        if text is None:
            projects.file.unlink()
        else:
            projects.file.write_text(text)
        reload(server)
        assert words in server.log()
        assert server.metric("teacherfarm_projects_current") == 0
        assert_labelled(teacher)
        with client(server, wire, "one") as another:
            assert_labelled(another)
        assert teacher.stats.sessions == 1
        projects.write(one={"weight": 2})
        reload(server)
        assert server.metric("teacherfarm_projects_current") == 1


def test_a_server_with_a_broken_file_does_not_start(projects, start_scripted):
    projects.file.write_text("[projects.one]\nstreams = -1\n")
    with pytest.raises(AssertionError, match=r"projects\.toml, line 2: project 'one': streams must be 0"):
        start_scripted("--projects", str(projects.file))


def test_sighup_without_projects_changes_nothing(start_scripted, wire):
    server = start_scripted()
    with TeacherClient(address(server, wire)) as teacher:
        assert_labelled(teacher)
        server.signal(signal.SIGHUP)
        wait_for(lambda: "to read again" in server.log())
        assert_labelled(teacher)


def test_weights_divide_a_teacher_between_hungry_projects(farm, wire):
    server = farm("--seconds-per-crop", "0.0005", "--largest-batch", "16", heavy={"weight": 3}, light={})
    counts = {}

    def served(name):
        return server.metric("teacherfarm_labels_total", project=name)

    stop = threading.Event()

    def ask(name):
        with client(server, wire, name, window=1024) as teacher:
            waiting = []
            for seed in itertools.count():
                waiting.append(teacher.submit(make_crops(32, seed % 8)))
                if len(waiting) == 16:
                    waiting.pop(0).result()
                if stop.is_set():
                    return

    students = [threading.Thread(target=ask, args=(name,)) for name in ("heavy", "light")]
    for student in students:
        student.start()
    try:
        wait_for(lambda: served("heavy") > 500 and served("light") > 100)
        before = {name: served(name) for name in ("heavy", "light")}
        wait_for(lambda: served("heavy") - before["heavy"] > 3000)
        counts = {name: served(name) - before[name] for name in ("heavy", "light")}
    finally:
        stop.set()
        for student in students:
            student.join()
    assert counts["heavy"] / counts["light"] == pytest.approx(3, rel=0.1)


def test_a_tenant_that_takes_all_streams_leaves_the_others_theirs(farm, wire):
    server = farm("--max-sessions", "4", greedy={}, late={})
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(client(server, wire, "greedy"))
        with pytest.raises(faults.QuotaExceeded, match="'greedy' has 2 of 2 streams open"):
            TeacherClient(address(server, wire), api_key="key of greedy", timeouts=Timeouts(connect_s=0.5)).connect()
        assert_labelled(stack.enter_context(client(server, wire, "late")))


@pytest.mark.parametrize("victim", ["another project", "the same project"])
def test_forged_keys_poison_their_own_project_alone(farm, wire, victim):
    """An attacker claims that its crop is the victim's, which is being asked for at the same time."""
    server = farm("--seconds-per-batch", "0.5", attacker={}, bystander={})
    owner = "bystander" if victim == "another project" else "attacker"
    crop, forged = make_crops(1, 1), make_crops(1, 2)
    right, wrong = (right_classes(crops, 10)[0] for crops in (crop, forged))
    assert right != wrong
    name = b"one crop's name!"
    with raw_student(address(server, wire)) as attacker, raw_student(address(server, wire)) as asking:
        for student, project in ((attacker, "attacker"), (asking, owner)):
            student.send(hello(api_key=f"key of {project}"))
            assert isinstance(student.receive()[0], Welcome)
        attacker.send(slice_header(1, 1, keys=name), forged.tobytes())
        wait_for(lambda: server.metric("teacherfarm_admitted_crops") == 1)
        asking.send(slice_header(1, 1, keys=name), crop.tobytes())
        answer, payload = asking.receive()
        assert isinstance(answer, SliceLabels)
        got = int(np.frombuffer(payload, np.float16).argmax())
    # Inside one project keys are trusted; without that, this test would show nothing.
    assert got == (right if victim == "another project" else wrong)
