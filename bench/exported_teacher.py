"""The teacher that the benchmarks serve, exported once and kept."""

from __future__ import annotations

from pathlib import Path

from bench.report import say
from teacherfarm.protos.teacher_card import CARD_FILE, TeacherCard

TEACHER = "efficientnet-lite0"
CACHE = Path.home() / ".cache" / "teacherfarm"


def exported(folder: Path, *, for_triton: bool = False, config: str = "") -> TeacherCard:
    """The card of ``folder``'s teacher, after exporting it where it is absent.

    ``for_triton``: for Triton's Python backend; ``config``: more lines for its config.pbtxt.
    """
    card_file = folder / TEACHER / CARD_FILE
    if not card_file.is_file():
        from teacherfarm.export import export_teacher

        say(f"exporting {TEACHER} to {folder} (once)")
        folder.mkdir(parents=True, exist_ok=True)
        export_teacher(TEACHER, folder, triton_backend="python" if for_triton else "onnxruntime")
        with (folder / TEACHER / "config.pbtxt").open("a") as lines:
            lines.write(config)
    return TeacherCard.from_json(card_file.read_bytes())
