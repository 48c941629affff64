"""What recorded labels hold, as a table for people: `teacherfarm labels stats DIR`."""

from __future__ import annotations

import fcntl
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from teacherfarm.label_store.label_directory import SAMPLES_FILE
from teacherfarm.label_store.manifest import Manifest
from teacherfarm.label_store.near_copy import bytes_to_copy
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.protos.teacher_card import CARD_FILE

MOST_LINES = 10
BAR_CELLS = 24


def main(location: str) -> int:
    """Print the table; 0. Raises what opening raises."""
    labels = open_with_bar(location)
    for name, text in rows(labels):
        print(f"{name:10}  {text}")
    return 0


def open_with_bar(location: str) -> RecordedLabels:
    """Open recorded labels, with a bar while those in other places are copied near."""
    size = bytes_to_copy(location)
    with tqdm(total=size, unit="B", unit_scale=True, desc="copying near", disable=None if size else True) as bar:
        return RecordedLabels.open(location, progress=bar.update)


def rows(labels: RecordedLabels) -> list[tuple[str, str]]:
    """Names and texts of the table's lines."""
    manifest, total = labels.manifest, len(labels.index) * labels.manifest.views
    teacher = manifest.teacher
    size = size_on_disk(labels.directory.root)
    per_label = f", {size / len(labels):.2f} bytes per label" if len(labels) else ""
    files = f"{counted(len(labels.content.shards), 'shard')} and {counted(labels.num_journals, 'journal')}"
    lines = [
        ("labels", f"{len(labels):,} of {total:,} ({_share(len(labels), total)}) in {labels.directory}"),
        ("", f"{len(labels.index):,} samples x {manifest.views} views"),
        ("teacher", f"{teacher.name}, {teacher.precision}: {teacher.num_classes} classes, {teacher.activation}"),
        (
            "",
            f"digest {teacher.teacher_digest[:16] or 'unknown'}, artifact {teacher.artifact_digest[:16] or 'unknown'}",
        ),
        ("kind", kind(manifest)),
        ("crops", crops(manifest)),
        ("on disk", f"{_bytes(size)} in {files}{per_label}"),
        ("sealed", f"{labels.num_sealed:,}, {len(labels) - labels.num_sealed:,} not yet"),
    ]
    lines += [("" if number else "writers", text) for number, text in enumerate(writers(labels.directory.journals()))]
    return lines + coverage(labels)


def kind(manifest: Manifest) -> str:
    """What a label is, in words."""
    spec = manifest.spec
    features = [name for name in spec.outputs if name != "labels"]
    parts = []
    if "labels" in spec.outputs:
        parts.append(f"the {spec.top_k} best classes at T={spec.temperature:g}" if spec.top_k else "all classes at T=1")
    parts += [f"{name} as {spec.feature_type}" for name in features]
    return f"{' and '.join(parts)}: {manifest.record_dtype.itemsize} bytes a record"


def crops(manifest: Manifest) -> str:
    """How the crops were cut, in words."""
    shape = manifest.rendering
    rendering = f"{shape.height}x{shape.width} {shape.interpolation}"
    mixed = "" if manifest.mixing == "none" else f", mixed by {manifest.mixing}"
    if manifest.plan is None:
        return f"boxes of their own, kept beside the labels; {rendering}{mixed}"
    plan = manifest.plan
    scale, ratio = (f"{low:g}..{high:g}" for low, high in (plan.scale, plan.ratio))
    return f"plan of seed {plan.seed}: scale {scale}, ratio {ratio}, flip {plan.flip_probability:g}; {rendering}{mixed}"


def writers(journals: list[Path]) -> list[str]:
    """Each journal's writer, and whether it still lives."""
    found = []
    for path in journals:
        host, pid, _ = path.stem.rsplit("-", 2)
        state = "writing now" if _is_locked(path) else "ended: `teacherfarm labels seal` takes its labels in"
        found.append(f"{host}, process {pid}: {_bytes(path.stat().st_size)}, {state}")
    return found


def coverage(labels: RecordedLabels) -> list[tuple[str, str]]:
    """How many of the samples have a label, over the views."""
    manifest = labels.manifest
    counts = labels_of_views(labels)
    lines = []
    for views in np.array_split(np.arange(manifest.views), min(MOST_LINES, manifest.views)):
        here, possible = int(counts[views].sum()), len(views) * len(labels.index)
        bar = "#" * round(BAR_CELLS * here / possible)
        name = f"{views[0]}" if len(views) == 1 else f"{views[0]}-{views[-1]}"
        lines.append(f"views {name:>9}  {bar:.<{BAR_CELLS}}  {_share(here, possible)}")
    return [("" if number else "coverage", text) for number, text in enumerate(lines)]


def labels_of_views(labels: RecordedLabels) -> NDArray[np.int64]:
    """How many labels each view has."""
    bits, size = labels.present().bits, len(labels.index)
    counts = np.zeros(labels.manifest.views, np.int64)
    for view in range(labels.manifest.views):
        start, stop = view * size, (view + 1) * size
        part = np.unpackbits(bits[start >> 3 : -(-stop // 8)], bitorder="little")
        counts[view] = part[start & 7 : (start & 7) + size].sum(dtype=np.int64)
    return counts


def size_on_disk(root: Path) -> int:
    """Bytes of labels, tables, journals and manifest, as far as they take room; not of what describes the samples and
    the teacher.
    """
    files = (path for path in root.rglob("*") if path.is_file() and path.name not in (SAMPLES_FILE, CARD_FILE))
    return sum(min(path.stat().st_size, path.stat().st_blocks * 512) for path in files)


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 shard, 2 shards."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _is_locked(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _share(part: int, whole: int) -> str:
    # Never 100 % while one is missing.
    return f"{int(1000 * part / whole) / 10:.1f} %"


def _bytes(size: int) -> str:
    value, unit = float(size), 0
    while value >= 1000 and unit < 4:
        value, unit = value / 1000, unit + 1
    return f"{value:.{0 if unit == 0 else 1}f} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"
