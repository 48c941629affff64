"""The tables of docs/USING.md that the code knows better, settings and metrics: ``python -m tools.doc_tables``."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from teacherfarm.teacher_server.metrics import Metrics
from teacherfarm.teacher_server.settings import ServerSettings

USING = Path(__file__).resolve().parents[1] / "docs" / "USING.md"


def settings_table() -> str:
    """Every setting of the server, in its order."""
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for setting in dataclasses.fields(ServerSettings):
        about, default = setting.metadata["help"], str(setting.default)
        shown = default.lower() if isinstance(setting.default, bool) else default
        if not default or "default:" in about:
            cell = ""
        else:
            cell = f"`{shown}`"
        lines.append(f"| `{setting.name}` | {cell} | {about} |")
    return "\n".join(lines)


def metrics_table() -> str:
    """Every metric, by name."""
    lines = ["| metric | what it counts |", "| --- | --- |"]
    for metric in Metrics().registry.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        lines.append(f"| `{name}` | {metric.documentation} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """The page with its tables as they should be."""
    for name, table in (("settings", settings_table()), ("metrics", metrics_table())):
        pattern = rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)"
        places = re.findall(pattern, text, flags=re.DOTALL)
        if len(places) != 1:
            raise ValueError(f"{USING.name} needs one pair of <!-- {name} --> and <!-- end of {name} -->")
        text = text.replace(f"<!-- {name} -->\n{places[0]}", f"<!-- {name} -->\n{table}\n")
    return text


if __name__ == "__main__":
    USING.write_text(with_tables(USING.read_text()))
