"""What docs/FARM.md says to the letter is right: its commands, files, services, settings and links."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from teacherfarm import cli
from tests.e2e.compose_file import read_compose_file, read_env_file

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "FARM.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line[0] not in " +"]
COMPOSE = read_compose_file(ROOT / "docker-compose.yml", ROOT / "deploy" / "compose.gpus.yml")
ACTIONS = {"build", "down", "exec", "kill", "logs", "ps", "restart", "run", "up"}
FLAGS_WITH_A_VALUE = {"--entrypoint", "-v", "-e", "-s", "--tail", "--scale"}


def words_of(line):
    """A command line's words, up to what the shell does with the output."""
    words = shlex.split(line, comments=True)
    ends = [place for place, word in enumerate(words) if word in ("|", ">", "<", "&&")]
    return words[: ends[0]] if ends else words


def compose_commands():
    """(action, its flags, what stands behind them) of every `docker compose` line."""
    for line in LINES:
        words = words_of(line)
        if words[:2] == ["docker", "compose"]:
            action, *rest = words[2:]
            flags = []
            while rest and rest[0].startswith("-"):
                flags.append(rest.pop(0))
                if flags[-1] in FLAGS_WITH_A_VALUE:
                    flags.append(rest.pop(0))
            yield action, flags, rest


def test_every_docker_compose_line_names_services_of_the_file():
    seen = set()
    for action, flags, rest in compose_commands():
        seen.add(action)
        assert action in ACTIONS
        services = rest[:1] if action == "run" else rest
        assert set(services) <= COMPOSE.services.keys(), (action, rest)
        scaled = [flag.partition("=")[0] for flag in flags if "=" in flag and flags[flags.index(flag) - 1] == "--scale"]
        assert set(scaled) <= COMPOSE.services.keys()
    assert {"up", "run", "kill", "logs"} <= seen


def test_every_teacherfarm_line_is_understood():
    lines = [words_of(line) for line in LINES if line.startswith("teacherfarm ")]
    entry = {"admin": ["teacherfarm"], "export": ["teacherfarm", "export"], "gateway": ["teacherfarm"]}
    for action, flags, rest in compose_commands():
        if action == "run" and "--entrypoint" not in flags:
            lines.append(entry[rest[0]] + rest[1:])
    assert len(lines) >= 8
    for words in lines:
        assert cli.make_parser(words[1]).parse_args(words[1:]).command == words[1]


def test_its_changes_of_the_settings_do_what_they_should(tmp_path):
    for name in ("docker-compose.yml", ".env"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets"))
    laptop = [line for line in LINES if "COMPOSE_PROFILES" in line]
    changes = [
        line
        for line in LINES
        if line.startswith(("sed -i", "echo 'COMPOSE_FILE=docker-compose.yml:deploy/compose.tls"))
    ]
    assert len(laptop) == 2
    for line in changes:
        if line not in laptop:
            subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    values = read_env_file(tmp_path / ".env")
    files = [tmp_path / name for name in values["COMPOSE_FILE"].split(":")]
    assert [file.name for file in files] == ["docker-compose.yml", "compose.tls.yml", "compose.mutual-tls.yml"]
    farm = read_compose_file(*files)
    gateway = farm.services["gateway"]
    told = {name.removeprefix("TEACHERFARM_"): value for name, value in gateway.environment.items()}
    assert told["ALLOW_PLAINTEXT"] == "false"
    assert told["TRITON"] == "dns://triton:8001,10.0.0.12:8001"
    assert told["PROJECTS"] == farm.services["admin"].environment["TEACHERFARM_PROJECTS"]
    assert (told["CURVE_KEY"], told["CURVE_CLIENTS"]) == (
        "/etc/teacherfarm/curve/farm.secret",
        "/etc/teacherfarm/students",
    )
    assert {port.address for port in gateway.ports} == {"10.0.0.11", "127.0.0.1"}
    assert farm.secrets.keys() == {"grafana_admin_password", "tls_cert", "tls_key", "tls_client_ca"}


@pytest.mark.parametrize(("number", "started"), [(0, {"triton-cpu"}), (1, set())])
def test_its_changes_for_a_laptop_do_what_they_should(tmp_path, number, started):
    shutil.copy(ROOT / ".env", tmp_path / ".env")
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    line = [line for line in LINES if "COMPOSE_PROFILES" in line][number]
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    farm = read_compose_file(tmp_path / "docker-compose.yml")
    assert {name for name in farm.enabled() if "triton" in name} == started
    assert farm.services["gateway"].environment["TEACHERFARM_TRITON"] == ("dns://triton:8001" if started else "")


def test_files_that_it_names_are_there():
    named = set(re.findall(r"(?:deploy|tests|docs)/[\w./*-]*\w", PAGE)) - {"deploy/secrets"}
    made = {name for name in named if name.startswith("deploy/secrets/")}
    assert len(named - made) > 5
    for name in named - made:
        assert list(ROOT.glob(name)), name
    scripts = (ROOT / "deploy" / "certificates.sh").read_text() + (ROOT / "deploy" / "prepare.sh").read_text()
    for name in made:
        assert Path(name).stem in scripts or "alice" in name, name


def test_every_setting_that_it_names_is_there():
    known = read_env_file(ROOT / ".env").keys()
    assert set(re.findall(r"\bFARM_\w+", PAGE)) <= known


def test_every_service_is_explained():
    cells = re.findall(r"^\| (`[^|]+`) \| ", PAGE.partition("## One machine")[0], flags=re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)} == set(
        read_compose_file(ROOT / "docker-compose.yml").services
    )


def headings(text):
    found = re.findall(r"^##+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in found}


def test_links_lead_somewhere():
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings(PAGE)
    for file, heading in re.findall(r"\]\(((?:\.\./)?[A-Z]+\.md)(?:#([^)]+))?\)", PAGE):
        target = (ROOT / "docs" / file).resolve()
        assert target.is_file(), file
        assert not heading or heading in headings(target.read_text()), heading
