"""docker-compose.yml, its override files and the Dockerfiles: accepted by docker-compose, with what services need."""

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from tests.e2e.compose_file import interpolate, read_compose_file, read_env_file, seconds
from tests.e2e.dockerfile import read_dockerfile
from tests.real_parts import absent

ROOT = Path(__file__).resolve().parents[3]
MAIN = ROOT / "docker-compose.yml"
TRITON_MACHINE = ROOT / "deploy" / "triton-machine" / "docker-compose.yml"
OVERRIDES = sorted((ROOT / "deploy").glob("compose.*.yml"))
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
COMBINATIONS = {
    "plain": [],
    "tls": [ROOT / "deploy/compose.tls.yml"],
    "mutual-tls": [ROOT / "deploy/compose.tls.yml", ROOT / "deploy/compose.mutual-tls.yml"],
    "gpus": [ROOT / "deploy/compose.gpus.yml"],
}
ONCE = {"export", "admin"}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY$|API_KEY")


def compose_files(profile):
    for overrides in COMBINATIONS.values():
        yield read_compose_file(MAIN, *overrides, environment={"COMPOSE_PROFILES": profile})
    yield read_compose_file(TRITON_MACHINE, environment={"TRITON_BIND": "10.0.0.12"})


def services(profile):
    return [service for compose in compose_files(profile) for service in compose.services.values()]


@pytest.fixture(params=["gpu", "cpu"])
def profile(request):
    return request.param


def docker_compose(*arguments, **environment):
    if shutil.which("docker-compose") is None:
        absent("docker-compose is not installed: apt-get install docker-compose")
    path = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    command = ["docker-compose", *map(str, arguments), "config"]
    return subprocess.run(command, cwd=ROOT, env={**path, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_docker_compose_accepts_it_and_reads_it_as_the_tests_do(profile, name):
    files = [MAIN, *COMBINATIONS[name]]
    done = docker_compose(*(word for file in files for word in ("-f", file)), COMPOSE_PROFILES=profile)
    assert done.returncode == 0, done.stderr
    told = yaml.safe_load(done.stdout)["services"]
    ours = read_compose_file(*files, environment={"COMPOSE_PROFILES": profile}).services
    assert told.keys() == ours.keys()
    for name, service in ours.items():
        theirs = told[name]
        assert theirs.get("image") == service.image
        assert theirs.get("environment", {}) == service.environment
        assert theirs.get("user") == service.user
        assert theirs.get("restart") == service.restart
        assert set(theirs.get("networks", {})) == set(service.networks)
        assert seconds(theirs["stop_grace_period"]) == service.stop_grace_s
        assert theirs.get("healthcheck", {}).get("test", [])[1:] == list(service.health.test if service.health else [])
        assert [f"{p.address}:{p.published}:{p.target}/tcp" for p in service.ports] == theirs.get("ports", [])
        modes = {False: "rw", True: "ro"}
        mounts = sorted(f"{m.source}:{m.target}:{modes[m.read_only]}" for m in service.mounts)
        assert mounts == sorted(theirs.get("volumes", []))
        command = theirs.get("command", [])
        assert list(service.command) == (command.split() if isinstance(command, str) else command)


def test_docker_compose_accepts_the_file_of_a_triton_machine():
    done = docker_compose("-f", TRITON_MACHINE, TRITON_BIND="10.0.0.12")
    assert done.returncode == 0, done.stderr
    done = docker_compose("-f", TRITON_MACHINE)
    assert done.returncode != 0
    assert "the gateway reaches and strangers do not" in done.stderr


def test_docker_compose_refuses_what_is_no_compose_file(tmp_path):
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(MAIN.read_text().replace("stop_grace_period:", "stop_grace:"))
    assert docker_compose("-f", broken).returncode != 0


def test_the_profiles_start_what_they_should():
    shared = {"export", "gateway", "redis", "prometheus", "grafana"}
    started = {
        profile: set(read_compose_file(MAIN, environment={"COMPOSE_PROFILES": profile}).enabled())
        for profile in ("gpu", "cpu", "")
    }
    assert started == {"gpu": shared | {"triton"}, "cpu": shared | {"triton-cpu"}, "": shared}
    assert read_compose_file(MAIN).profiles == {"gpu"}, "the default of .env"


def test_every_image_is_pinned(profile):
    for service in services(profile):
        assert re.fullmatch(r"[^:]+:v?\d+(\.\d+)+(-[\w.]+)?", service.image), service.image
    for file in DOCKERFILES:
        assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-[\w-]+", base) for base in read_dockerfile(file).bases)


def test_everything_is_checked_and_started_again_but_what_runs_once(profile):
    for service in services(profile):
        if service.name in ONCE:
            assert (service.health, service.health_disabled, service.restart) == (None, True, "no")
        else:
            assert service.health is not None, service.name
            assert service.health.timeout_s < service.health.interval_s
            assert service.restart == "unless-stopped", service.name


def test_nobody_is_killed_while_it_drains(profile):
    for compose in compose_files(profile):
        gateway = compose.services.get("gateway")
        if gateway is not None:
            assert gateway.stop_grace_s >= float(gateway.environment["TEACHERFARM_DRAIN_S"]) + 10
        for service in compose.services.values():
            for flag in service.command:
                if flag.startswith("--exit-timeout-secs="):
                    assert service.stop_grace_s >= float(flag.partition("=")[2]) + 10


def test_nothing_runs_as_root_or_may_become_it(profile):
    for service in services(profile):
        uid, _, _ = service.user.partition(":")
        assert uid.isdigit(), service.name
        assert int(uid) > 0, service.name
        assert service.hardened, service.name
    for file in DOCKERFILES:
        assert read_dockerfile(file).user == "10001:10001"


def test_no_secret_is_in_the_environment(profile):
    for service in services(profile):
        for name, value in service.environment.items():
            if SECRET.search(name):
                assert not value or value.startswith("/"), f"{service.name}: {name} is to name a file"
    assert not [
        name for name in read_env_file(ROOT / ".env") if SECRET.search(name) and read_env_file(ROOT / ".env")[name]
    ]


def test_triton_can_be_scaled_and_is_found(profile):
    main = read_compose_file(MAIN, environment={"COMPOSE_PROFILES": profile})
    tritons = [service for name, service in main.enabled().items() if name.startswith("triton")]
    assert len(tritons) == 1
    assert tritons[0].ports == ()
    assert "container_name" not in MAIN.read_text()
    assert "triton" in (tritons[0].name, *tritons[0].networks["farm"])
    assert main.services["gateway"].environment["TEACHERFARM_TRITON"] == "dns://triton:8001"
    assert main.networks["farm"], "Triton and Redis ask nobody for a key: their network is internal"


def test_only_what_students_need_is_published_beyond_this_machine(profile):
    main = read_compose_file(MAIN, environment={"COMPOSE_PROFILES": profile, "FARM_BIND": "10.0.0.1"})
    published = {(s.name, p.target): p.address for s in main.services.values() for p in s.ports}
    beyond = {place for place, address in published.items() if address != "127.0.0.1"}
    assert beyond == {("gateway", 7000), ("gateway", 7001)}


def test_every_triton_is_started_alike():
    commands = {
        (s.image, s.command, s.user, s.health, s.stop_grace_s, s.shm_bytes)
        for s in services("gpu")
        if s.name.startswith("triton")
    }
    assert len(commands) == 1


def test_a_gpu_is_reserved_where_triton_runs_on_one():
    found = {s.name: s.devices for s in services("gpu") if s.name.startswith("triton")}
    assert found.pop("triton-cpu") == ()
    assert {"triton", "triton-gpu0", "triton-gpu1"} == found.keys()
    assert all(device["driver"] == "nvidia" and device["capabilities"] == ["gpu"] for (device,) in found.values())


def test_everything_mounted_from_the_checkout_is_there():
    made_by_the_user = {"deploy/secrets", "deploy/triton-machine/models"}
    for service in services("gpu"):
        for mount in service.mounts:
            if not mount.named:
                path = Path(mount.source).relative_to(ROOT)
                assert str(path) in made_by_the_user or (ROOT / path).exists(), path
    for compose in compose_files("gpu"):
        assert all(str(secret.relative_to(ROOT)).startswith("deploy/secrets/") for secret in compose.secrets.values())


def test_every_variable_of_the_file_is_in_env_or_has_a_default():
    known = read_env_file(ROOT / ".env")
    for name, default in re.findall(r"\$\{(\w+)(:?-[^}]*)?\}", MAIN.read_text()):
        assert name in known or default, name
    used = set(re.findall(r"\$\{(\w+)", MAIN.read_text()))
    assert {name for name in known if name.startswith("FARM_")} <= used


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_what_a_dockerfile_copies_is_there_and_reaches_the_build(file):
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    image = read_dockerfile(file)
    assert image.copied
    for path in image.copied:
        assert (ROOT / path).exists(), path
        assert any(fnmatch(path, pattern) for pattern in kept), f"{path} is in .dockerignore"
    packages = {link.name for link in (ROOT / "teacherfarm").iterdir() if link.is_symlink()}
    assert packages | {"teacherfarm"} <= set(image.copied), "setuptools follows every link"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_dockerfiles_keep_the_rules(file):
    image = read_dockerfile(file)
    keywords = [keyword for keyword, _ in image.instructions]
    assert len(image.bases) == 2, "built in one stage, run in another"
    assert keywords.index("USER") > len(keywords) - 1 - keywords[::-1].index("FROM"), "the last stage has a user"
    assert "ADD" not in keywords
    installs = [rest for keyword, rest in image.instructions if keyword == "RUN" and "pip install" in rest]
    assert installs
    for rest in installs:
        assert "--constraint constraints.txt" in rest
        assert "PIP_NO_CACHE_DIR=1" in file.read_text()
    assert image.entrypoint[0] == "teacherfarm"
    assert not any("apt-get" in rest or "curl" in rest for keyword, rest in image.instructions if keyword == "RUN")


def test_only_the_export_image_has_pytorch():
    texts = {file.stem: file.read_text() for file in DOCKERFILES}
    assert ".[server,redis]'" in texts["gateway"]
    assert "torch " not in texts["gateway"].replace("PyTorch", "")
    assert "torch torchvision" in texts["export"].replace("\\\n   ", "")


def test_references_are_resolved_as_compose_does():
    values = {"A": "1", "EMPTY": ""}
    assert interpolate("$A ${A} ${B:-x} ${B-x} ${EMPTY:-x} [${EMPTY-x}] $$A", values) == "1 1 x x x [] $A"
    with pytest.raises(ValueError, match="B is not set: say which"):
        interpolate("${B:?say which}", values)


def test_preparing_keeps_a_password_that_is_there(tmp_path):
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy/prepare.sh", tmp_path / "deploy")
    password = tmp_path / "deploy/secrets/grafana_admin_password"
    seen = set()
    for _ in range(2):
        subprocess.run(["bash", "deploy/prepare.sh"], cwd=tmp_path, check=True, capture_output=True)
        seen.add(password.read_text())
    assert [len(text) for text in seen] == [24]
    assert password.parent.stat().st_mode & 0o777 == 0o700
    assert password.stat().st_mode & 0o777 == 0o644
