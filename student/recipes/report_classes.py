"""The parts of a report that go class by class: confusion, the classes that fail, agreement with the teacher."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from teacherfarm.student.recipes.report_charts import key
from teacherfarm.student.tally import Answers, Tally

MOST_WITH_NUMBERS = 20
NUM_ROWS = 12
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)


def class_names(classes: Sequence[str], num_classes: int) -> Sequence[str]:
    """The names given, or numbers."""
    return classes if len(classes) == num_classes else [str(number) for number in range(num_classes)]


def confusion(answers: Answers, classes: Sequence[str]) -> str:
    """Rows are the data's classes, columns the student's answers: numbers for few classes, a picture for many."""
    counts = answers.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = class_names(classes, len(counts))
    if len(counts) > MOST_WITH_NUMBERS:
        told = f"confusion of {len(counts)} classes, rows the data's, columns the student's"
        return f'<img class="confusion" alt="{told}" src="{_picture(shares)}">'
    head = "".join(f"<th>{escape(name[:24])}</th>" for name in names)
    rows = []
    for row, name in enumerate(names):
        cells = []
        for column, other in enumerate(names):
            share = shares[row, column]
            kind = ("right" if row == column else "wrong") + (" full" if share > 0.5 else "")
            told = f"{name} taken for {other}: {counts[row, column]} of {counts[row].sum()}"
            shown = f"{100 * share:.0f}" if counts[row, column] else ""
            cells.append(f'<td class="{kind}" style="--share:{share:.3f}" title="{escape(told)}">{shown}</td>')
        rows.append(f"<tr><th>{escape(name[:24])}</th>{''.join(cells)}</tr>")
    return f'<table class="confusion"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def most_confused(answers: Answers, classes: Sequence[str]) -> str:
    """The pairs that are taken for each other most often."""
    wrong = answers.confusion.copy()
    np.fill_diagonal(wrong, 0)
    names, sizes = class_names(classes, len(wrong)), answers.confusion.sum(axis=1)
    rows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:NUM_ROWS]:
        row, column = divmod(int(place), len(wrong))
        if not wrong[row, column]:
            break
        rows.append((names[row], names[column], f"{wrong[row, column]} of {sizes[row]}"))
    if not rows:
        return "<p>None was taken for another.</p>"
    return table(("class", "taken for", "crops"), rows, title="confused most often", kind="words")


def weakest(student: Answers, teacher: Answers | None, classes: Sequence[str]) -> str:
    """The classes that the student recognises least often, beside the teacher."""
    recall, names = student.recall(), class_names(classes, len(student.confusion))
    others = teacher.recall() if teacher is not None else np.full_like(recall, np.nan)
    sizes = student.confusion.sum(axis=1)
    worst = [int(place) for place in np.argsort(recall, kind="stable")[:NUM_ROWS] if sizes[place]]
    rows = [(names[place], str(sizes[place]), _percent(recall[place]), _percent(others[place])) for place in worst]
    return table(("class", "crops", "student", "teacher"), rows, title="recognised least often")


def agreement(tally: Tally) -> str:
    """Who was right where both answered, as a bar and in numbers."""
    outcomes: Mapping[str, int] = tally.outcomes
    total = sum(outcomes.values())
    if not total:
        return ""
    colours = dict(zip(outcomes, (2, 0, 1, 6, 4), strict=True))
    shares = {name: count / total for name, count in outcomes.items()}
    bar = "".join(
        f'<i style="--share:{share:.4f};--colour:var(--c{colours[name]})" title="{name}: {_percent(share)}"></i>'
        for name, share in shares.items()
        if share
    )
    keys = "".join(key(f"{name} {_percent(share)}", colours[name]) for name, share in shares.items())
    return f'<div class="stack">{bar}</div><div>{keys}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", kind: str = "") -> str:
    """A table of texts; ``kind``: "words" where no column holds numbers."""
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{kind}">{caption}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share == share else "–"


def _picture(shares: NDArray[np.float64]) -> str:
    """A PNG as a data address, a pixel for each pair; transparent where nothing is, so that it fits any background."""
    # The square root shows single mistakes beside the diagonal.
    strength = np.rint(255 * np.sqrt(shares)).astype(np.uint8)
    pixels = np.empty((*shares.shape, 4), np.uint8)
    pixels[..., :3] = WRONG
    pixels[np.arange(len(shares)), np.arange(len(shares)), :3] = RIGHT
    pixels[..., 3] = strength
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", shares.shape[1], shares.shape[0], 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return "data:image/png;base64," + base64.b64encode(png).decode()
