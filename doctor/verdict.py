"""What measured figures mean: who bounds a student, and would jpeg help. Plain arithmetic; measures nothing."""

from __future__ import annotations

from dataclasses import dataclass

from teacherfarm.doctor.finding import Finding, ok, warning
from teacherfarm.protos.messages import FarmLoad
from teacherfarm.student.sizing import SATURATED, teachers_missing

FULL_LINK = 0.7
"""Crops that fill this much of what the link can move are bound by it: headers, answers and turns take the rest."""
FULL_WINDOW = 0.7
BUSY_TEACHERS = 0.8 * SATURATED
WORTH_ITS_WHILE = 1.3
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured between this machine and a farm.

    ``up_bytes_per_s``: payload that the wire moves to the server without any teacher; None for a server that cannot be
    asked that. ``labels_per_s`` with ``window_crops`` in flight. ``jpeg_bytes`` and ``jpeg_s``: of one crop, encoding
    it on one core; None where this teacher takes no jpeg. ``load``: what the server said meanwhile.
    """

    rtt_s: float | None
    up_bytes_per_s: float | None
    labels_per_s: float
    window_crops: int
    crop_bytes: int
    jpeg_bytes: float | None
    jpeg_s: float
    cores: int
    load: FarmLoad | None

    @property
    def raw_per_s(self) -> float | None:
        """Crops/s that the wire could move as they are."""
        return self.up_bytes_per_s / self.crop_bytes if self.up_bytes_per_s is not None else None

    @property
    def jpeg_per_s(self) -> float | None:
        """Crops/s that it could move as jpeg: bound by the wire, or by encoding on every core."""
        if self.up_bytes_per_s is None or self.jpeg_bytes is None:
            return None
        return min(self.up_bytes_per_s / self.jpeg_bytes, self.cores / self.jpeg_s)


def link_findings(figures: Figures, wanted: float | None) -> list[Finding]:
    """The figures in words, who is the bound, and whether a student that takes ``wanted`` crops/s would be fed."""
    findings = []
    if figures.rtt_s is not None:
        findings.append(ok("round trip", f"{figures.rtt_s * 1000:.1f} ms"))
    if figures.up_bytes_per_s is not None and figures.raw_per_s is not None:
        findings.append(
            ok(
                "bandwidth",
                f"{figures.up_bytes_per_s / MIB:.0f} MiB/s to the server, without its teachers: "
                f"{figures.raw_per_s:.0f} raw crops/s of {figures.crop_bytes / 1024:.0f} KiB",
            )
        )
    findings.append(ok("labels", f"{figures.labels_per_s:.0f} labels/s with {figures.window_crops} crops in flight"))
    findings.append(bound(figures))
    if wanted is not None:
        findings.append(feeds(figures, wanted))
    return findings


def bound(figures: Figures) -> Finding:
    """Link, teachers, window or this machine: what would have to grow to get more labels."""
    load, raw = figures.load, figures.raw_per_s
    if raw is not None and figures.labels_per_s >= FULL_LINK * raw:
        return _link_bound(figures, raw)
    if load is not None and load.busy >= BUSY_TEACHERS:
        return ok(
            "bound",
            f"the teachers: {load.backends} of them {100 * load.busy:.0f} % busy with {load.labels_per_s:.0f} labels/s "
            "for all their students; more of them would give more, the link has room",
        )
    if figures.rtt_s and figures.labels_per_s >= FULL_WINDOW * figures.window_crops / figures.rtt_s:
        return warning(
            "bound",
            f"the window: {figures.window_crops} crops in flight over a round trip of {figures.rtt_s * 1000:.0f} ms "
            f"are at most {figures.window_crops / figures.rtt_s:.0f} crops/s",
            "a larger window= for the client, and --window and --memory-mb for the server",
        )
    if load is None:
        return ok(
            "bound", "the server does not say how busy its teachers are, and the link has room: likely the teachers"
        )
    return ok(
        "bound",
        f"neither the link nor the teachers ({100 * load.busy:.0f} % busy): this machine's processor, the gateway's, "
        "or other students",
    )


def _link_bound(figures: Figures, raw: float) -> Finding:
    jpeg = figures.jpeg_per_s
    found = (
        f"the link: {figures.labels_per_s:.0f} labels/s are {100 * figures.labels_per_s / raw:.0f} % of the raw crops "
    )
    found += "that it can move"
    if jpeg is not None and figures.jpeg_bytes is not None and jpeg >= WORTH_ITS_WHILE * raw:
        return warning(
            "bound",
            found,
            f'codec="jpeg": a crop becomes {figures.jpeg_bytes / 1024:.0f} KiB, so up to {jpeg:.0f} crops/s for '
            f"{figures.jpeg_s * 1000:.2f} ms of one core each; or a faster link",
        )
    no_jpeg = "jpeg would not help" if jpeg is not None else "this teacher takes no jpeg"
    return warning("bound", found, f"a faster link, or a student nearer to its farm ({no_jpeg})")


def feeds(figures: Figures, wanted: float) -> Finding:
    """Whether a student of ``wanted`` crops/s would wait."""
    got = figures.labels_per_s
    if got >= wanted:
        return ok("sizing", f"{got:.0f} labels/s feed a student that takes {wanted:.0f} crops/s")
    stall = 1 - got / wanted
    found = f"a student that takes {wanted:.0f} crops/s would wait {100 * stall:.0f} % of its time"
    missing = teachers_missing(wanted=wanted, got=got, load=figures.load) if figures.load is not None else None
    raw = figures.raw_per_s
    if raw is not None and raw < wanted:
        return warning("sizing", found, f"the link moves {raw:.0f} raw crops/s at most: see bound")
    if missing:
        teachers = "1 more teacher" if missing == 1 else f"{missing} more teachers"
        return warning("sizing", found, f"{teachers} would feed this student")
    return warning("sizing", found, "see bound: it is not for want of teachers" if missing == 0 else "see bound")
