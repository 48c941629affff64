"""Keys, allowances and who a key belongs to; a reload changes projects in place."""

import math
import re

import pytest

from teacherfarm.protos.faults import Unauthenticated
from teacherfarm.teacher_server.projects.api_keys import digest_of, find_holder, is_digest, make_key
from teacherfarm.teacher_server.projects.project import Allowance, Project
from teacherfarm.teacher_server.projects.projects_file import ProjectEntry
from teacherfarm.teacher_server.projects.registry import Projects
from tests.unit.teacher_server.scripted import entries, keyed


def test_a_key_is_256_random_bits_and_can_be_told_by_its_prefix():
    keys = {make_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"tf_[0-9a-f]{64}", key) for key in keys)


def test_a_digest_tells_nothing_of_the_key():
    key = make_key()
    assert is_digest(digest_of(key))
    assert key.removeprefix("tf_") not in digest_of(key)
    assert not is_digest(key)
    assert not is_digest(digest_of(key).upper())


def test_every_key_is_compared_whichever_matches(monkeypatch):
    compared = []
    monkeypatch.setattr(
        "teacherfarm.teacher_server.projects.api_keys.hmac.compare_digest",
        lambda a, b: compared.append(b) or a == b,
    )
    holders = {digest_of(key): key for key in ("one", "two", "three")}
    for key in ("one", "three", "nobody's"):
        compared.clear()
        found = find_holder(key, holders)
        assert (found and found[1]) == (None if key == "nobody's" else key)
        assert len(compared) == 3


def test_whatever_comes_as_a_key_is_only_wrong():
    assert find_holder("\ud800\0ü", {digest_of("key"): 1}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight": 0}, "weight must be from 0.001 to 1000, got 0"),
        ({"weight": math.nan}, "got nan"),
        ({"weight": math.inf}, "got inf"),
        ({"crops_per_second": -1}, r"crops_per_second must be 0 \(no limit\) or more, .*got -1"),
        ({"weight": 5e-324}, "weight must be from"),
        ({"crops_per_second": math.inf}, "got inf"),
        ({"crops_per_second": 1e300}, "at most 1000000000000, got 1e"),
        ({"crops_in_flight": -1}, "crops_in_flight"),
        ({"streams": -1}, "streams"),
    ],
)
def test_an_allowance_that_makes_no_sense(changes, words):
    with pytest.raises(ValueError, match=words):
        Allowance(**changes)


@pytest.mark.parametrize(
    ("patterns", "teacher", "allowed"),
    [
        (("*",), "anything", True),
        ((), "anything", False),
        (("resnet50",), "resnet50", True),
        (("resnet50",), "resnet501", False),
        (("resnet50",), "Resnet50", False),
        (("vit-*", "resnet?0"), "resnet50", True),
        (("vit-*", "resnet?0"), "vit-b16", True),
        (("vit-*",), "a-vit-b16", False),
    ],
)
def test_teachers_are_allowed_by_pattern(patterns, teacher, allowed):
    assert Project(name="p", allowance=Allowance(teachers=patterns)).may_use(teacher) is allowed


def test_a_project_follows_its_allowance():
    project = Project(name="p")
    assert (project.weight, project.quota) == (1.0, None)
    project.allow(Allowance(weight=3, crops_per_second=10))
    quota = project.quota
    assert project.weight == 3
    assert quota is not None
    quota.admit(5, 0.0)
    project.allow(Allowance(crops_in_flight=5))
    assert project.quota is quota, "its accounts stay"
    assert (quota.crops_per_second, quota.most_in_flight, quota.in_flight_crops) == (0, 5, 5)
    project.allow(Allowance())
    assert project.quota is None


def test_a_server_without_projects_knows_one_and_asks_nobody():
    projects = Projects()
    everybody = {projects.authenticate(key) for key in ("", "any", make_key())}
    [(project, digest)] = everybody
    assert (project.name, project.quota) == ("default", None)
    assert projects.admits(project, digest)
    assert projects.most_streams(project) == 0


def test_a_key_opens_its_project_alone():
    projects = keyed(one=Allowance(), two=Allowance())
    for name in ("one", "two"):
        project, digest = projects.authenticate(f"key of {name}")
        assert (project.name, digest) == (name, digest_of(f"key of {name}"))
        assert projects.admits(project, digest)
    assert not projects.admits(project, digest_of("key of one"))


def test_wrong_revoked_and_unmade_keys_get_the_same_words():
    projects = keyed(one=Allowance(), two=Allowance())
    projects.update(entries(one=Allowance()))
    words = set()
    for key in ("key of two", make_key(), digest_of("key of one"), "key of one ", "KEY OF ONE"):
        with pytest.raises(Unauthenticated) as caught:
            projects.authenticate(key)
        words.add(str(caught.value))
        assert key.strip() not in str(caught.value)
    assert len(words) == 1
    with pytest.raises(Unauthenticated, match="asks for an API key: set TEACHERFARM_API_KEY"):
        projects.authenticate("")


def test_no_keys_at_all_let_nobody_in():
    for projects in (Projects([]), Projects([ProjectEntry(name="p", allowance=Allowance())])):
        for key in ("", "any"):
            with pytest.raises(Unauthenticated):
                projects.authenticate(key)


def test_an_update_keeps_the_project_and_forgets_what_is_gone():
    projects = keyed(one=Allowance(), two=Allowance())
    one, digest = projects.authenticate("key of one")
    two, other = projects.authenticate("key of two")
    projects.update(entries(one=Allowance(weight=5)))
    assert projects.authenticate("key of one") == (one, digest)
    assert one.weight == 5
    assert projects.admits(one, digest)
    assert not projects.admits(two, other)


def test_streams_without_a_limit_are_an_equal_share():
    projects = keyed(8, one=Allowance(), two=Allowance(streams=7), three=Allowance())
    most = [projects.most_streams(projects.authenticate(f"key of {name}")[0]) for name in ("one", "two", "three")]
    assert most == [2, 7, 2]
    projects.update(entries(one=Allowance()))
    assert projects.most_streams(projects.authenticate("key of one")[0]) == 8
