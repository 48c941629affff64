"""The accuracy study as a page: mean and deviation over seeds, gain over the student alone, bytes on the wire."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.accuracy_cells import ALONE, LEFT_OUT, Cell, Contestant

READING = "## What it says"
"""What stands below is written by people, and kept when the page is written again."""

PAGE = """\
# Accuracy

One student trained alone and by each method, through a live server: the same images, crops, epochs and learning rates
for all, whatever a method's paper would choose. Made by `python -m bench accuracy`, as it came out.

{facts}

{found}

Top-1 on the test images: mean ± sample deviation over seeds. A gain is clear when it is larger than its own
deviation: the root of both squared deviations added. Answers are bytes of a training crop's labels and features. MB are
what the server counted in a run, with the test images that the finished student is compared on; CPU seconds are the
student's process's, with the cutting of crops and the evaluation.

Settings are the methods' defaults, but:

{notes}

Not compared:

{left_out}

{words}"""

HEADER = """\
| method | top-1 % | seeds | gain over alone | clear | answer, bytes/crop | crops + answers, MB | CPU s |
| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |"""


@dataclass(frozen=True, kw_only=True)
class Score:
    """``mean``, ``deviation``: of top-1 in percent; the deviation is the sample's, NaN of a single seed."""

    mean: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Score:
        shares = [100 * cell.top1 for cell in cells]
        deviation = statistics.stdev(shares) if len(shares) > 1 else math.nan
        return cls(mean=statistics.mean(shares), deviation=deviation, seeds=len(shares))

    def beats(self, other: Score) -> bool | None:
        """Whether the gain is larger than its own deviation, that of a difference; None where that is not known."""
        spread = math.hypot(self.deviation, other.deviation)
        return None if math.isnan(spread) else self.mean - other.mean > spread


def table(
    contestants: Sequence[Contestant], cells: Mapping[str, Sequence[Cell]], answer_bytes: Mapping[str, float]
) -> str:
    """Markdown: a line for each contestant that has a finished cell."""
    alone = Score.of(cells[ALONE]) if cells.get(ALONE) else None
    lines = [HEADER]
    for contestant in contestants:
        runs = cells.get(contestant.name)
        if not runs:
            continue
        score = Score.of(runs)
        gain = verdict = ""
        if alone is not None and contestant.name != ALONE:
            gain = f"{score.mean - alone.mean:+.2f}"
            verdict = {True: "yes", False: "no", None: "one seed"}[score.beats(alone)]
        deviation = "" if math.isnan(score.deviation) else f" ± {score.deviation:.2f}"
        crops, answers, cpu_s = (
            statistics.mean(getattr(run, field) for run in runs) for field in ("crop_mb", "answer_mb", "cpu_s")
        )
        lines.append(
            f"| {contestant.name} | {score.mean:.2f}{deviation} | {score.seeds} | {gain} | {verdict} | "
            f"{answer_bytes[contestant.name]:,.0f} | {crops:,.0f} + {answers:,.0f} | {cpu_s:.0f} |"
        )
    return "\n".join(lines)


def write_page(file: Path, facts: Sequence[str], found: str, contestants: Sequence[Contestant]) -> None:
    """Write the page whole; ``facts``: one line each on what was trained how."""
    page = PAGE.format(
        facts=_list(facts),
        found=found,
        notes=_list([f"{one.name}: {one.why}" for one in contestants if one.why]),
        left_out=_list([f"{name}: {why}" for name, why in LEFT_OUT.items()]),
        words=kept_words(file),
    )
    part = file.with_suffix(".part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, file)


def kept_words(file: Path) -> str:
    """What people wrote below the figures."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return READING + text.partition(READING)[2] if READING in text else f"{READING}\n"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
