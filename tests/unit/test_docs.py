"""The pages in docs/ say what the code says: settings, metrics, arguments, faults, files and tests by name."""

import inspect
import re
from pathlib import Path

from teacherfarm import cli
from teacherfarm.protos import faults
from teacherfarm.student import AsyncTeacherClient
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.settings import Timeouts
from tools.doc_tables import with_tables

ROOT = Path(__file__).resolve().parents[2]
USING = (ROOT / "docs" / "USING.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()


def rows(heading):
    """The names in the first cells of the table under a heading."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", USING, flags=re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    cells = re.findall(r"^\| ([^|]+) \|", section[1], flags=re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def arguments(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_settings_and_metrics_are_current():
    assert with_tables(USING) == USING, "run: python -m tools.doc_tables"


def test_a_stale_table_is_seen():
    assert with_tables(USING.replace("most open sessions", "all sessions")) == USING


def test_every_argument_of_the_client_is_explained():
    assert sorted(rows("Asking for labels")) == sorted(arguments(AsyncTeacherClient.__init__))
    shown = re.search(r"`Timeouts\((.*?)\)`", USING)
    assert shown is not None
    assert eval(f"Timeouts({shown[1]})", {"Timeouts": Timeouts}) == Timeouts()


def test_every_argument_of_the_loader_is_explained():
    assert rows("The loader") == arguments(LabelledLoader.__init__)


def test_every_fault_is_explained():
    named = rows("Trouble, by fault")
    known = [
        name
        for name, value in vars(faults).items()
        if inspect.isclass(value) and issubclass(value, faults.TeacherFarmFault)
    ]
    assert sorted(named) == sorted(known)


def test_links_inside_the_page_lead_somewhere():
    headings = {
        re.sub(r"[^\w -]", "", line[3:]).strip().lower().replace(" ", "-")
        for line in USING.splitlines()
        if line.startswith("## ")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", USING)) == headings


def test_every_file_and_test_that_the_architecture_names_exists():
    missing = []
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.py)(?:::(\w+))?`", ARCHITECTURE):
        path = ROOT / name[0]
        if not path.is_file() or (name[1] and f"def {name[1]}(" not in path.read_text()):
            missing.append("::".join(name))
    assert missing == []


def test_commands_in_the_pages_are_right():
    lines = re.findall(r"^teacherfarm .*$", USING + ARCHITECTURE, flags=re.MULTILINE)
    assert lines
    for line in lines:
        words = line.split()
        assert cli.make_parser(words[1]).parse_args(words[1:]).command == words[1]
