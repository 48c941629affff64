"""What a check found, and findings as text and as JSON. Plain values."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "problem")
WIDTH = 110
INDENT = " " * 11


@dataclass(frozen=True, kw_only=True)
class Finding:
    """``check``: what was looked at, the same words in every run. ``found``: what was seen. ``do``: what to do."""

    level: Level
    check: str
    found: str
    do: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(level="ok", check=check, found=found)


def warning(check: str, found: str, do: str) -> Finding:
    """It works, but something may surprise."""
    return Finding(level="warning", check=check, found=found, do=do)


def problem(check: str, found: str, do: str) -> Finding:
    """It cannot work like this."""
    return Finding(level="problem", check=check, found=found, do=do)


def worst(findings: Sequence[Finding]) -> Level:
    """The worst level among them."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def as_text(findings: Sequence[Finding]) -> str:
    """One paragraph a finding, and a last line that sums up."""
    lines = []
    for finding in findings:
        first = f"{finding.level:<9}  {finding.check}: {finding.found}"
        lines += textwrap.wrap(first, WIDTH, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False)
        if finding.do:
            lines += textwrap.wrap(
                f"-> {finding.do}",
                WIDTH,
                initial_indent=INDENT,
                subsequent_indent=INDENT + "   ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join([*lines, "", summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """How many of what."""
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    if counts["problem"] or counts["warning"]:
        named = [f"{counts[level]} {level}{'s' * (counts[level] != 1)}" for level in ("problem", "warning")]
        return f"{' and '.join(named)} among {len(findings)} checks."
    return f"All {len(findings)} checks are well."


def as_json(target: str, findings: Sequence[Finding], figures: Mapping[str, float]) -> dict[str, Any]:
    """The same for programs. ``figures``: what was measured, in units that the names say."""
    return {
        "target": target,
        "level": worst(findings),
        "findings": [asdict(finding) for finding in findings],
        "figures": dict(figures),
    }
