"""The recipes of docs/SECURITY.md do what the page says, word for word."""

from __future__ import annotations

import re
import subprocess

from teacherfarm import cli
from teacherfarm.student.listing import list_teachers
from tests.farm_process import ROOT

PAGE = (ROOT / "docs" / "SECURITY.md").read_text()


def recipe(name):
    found = re.search(rf"<!-- recipe: {name} -->\n```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    assert found is not None, name
    return found[1]


def test_certificates_by_an_authority_of_ones_own(start_scripted, tmp_path):
    for name in ("tls", "mutual tls"):
        subprocess.run(["bash", "-ec", recipe(name)], cwd=tmp_path, check=True, capture_output=True)
    files = {name: tmp_path / name for name in ("ca.pem", "farm.pem", "farm.key", "alice.pem", "alice.key")}
    farm = start_scripted(
        f"--tls-cert={files['farm.pem']}", f"--tls-key={files['farm.key']}", f"--tls-client-ca={files['ca.pem']}"
    )
    address = f"{farm.grpc}?ca={files['ca.pem']}&cert={files['alice.pem']}&key={files['alice.key']}"
    for place in (address, address.replace("127.0.0.1", "localhost")):
        assert [teacher.name for teacher in list_teachers(place)] == ["scripted"]


def test_commands_of_the_page_are_right():
    lines = re.findall(r"^teacherfarm .*$", PAGE, flags=re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        words = line.split()
        assert cli.make_parser(words[1]).parse_args(words[1:]).command == words[1]


def test_links_inside_the_page_lead_somewhere():
    headings = {
        re.sub(r"[^\w -]", "", line[3:]).lower().replace(" ", "-") for line in PAGE.splitlines() if line[:3] == "## "
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) == headings
    for page in re.findall(r"\]\(([A-Z]+\.md)\)", PAGE):
        assert (ROOT / "docs" / page).is_file()
