"""From a source to a verified entry of a model repository: the path of one export, and nothing else.

Loads, plans, exports, verifies, writes; each step's own file knows how.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from teacherfarm.export.loading import Source, load_source, name_of, taps_of
from teacherfarm.export.teachers import ChannelOrder, Teacher
from teacherfarm.export.triton_repository import (
    TritonBackend,
    atomic_entry,
    check_name,
    refuse_existing,
    write_entry,
)
from teacherfarm.protos.crop import Interpolation, NumberType, Rendering
from teacherfarm.protos.faults import GoldenMismatch
from teacherfarm.protos.teacher_card import (
    HEAD_FILE,
    Activation,
    Precision,
    TeacherCard,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from teacherfarm.export.graph import GraphPlan
    from teacherfarm.export.probes import Probes
    from teacherfarm.export.verify import Answers, Comparison

DEFAULT_MAX_BATCH = 64


def export_teacher(
    source: Source,
    out: Path,
    *,
    name: str = "",
    weights: Path | Sequence[Path | None] | None = None,
    pretrained: bool = False,
    random_weights: bool = False,
    precision: Precision = "fp32",
    activation: Activation | None = None,
    channel_order: ChannelOrder | None = None,
    input_type: NumberType = "uint8",
    size: tuple[int, int] | None = None,
    interpolation: Interpolation | None = None,
    crop_scale: tuple[float, float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    licence: str = "",
    ensemble_temperature: float = 1.0,
    taps: Sequence[str] = (),
    triton_backend: Literal["onnxruntime", "python"] = "onnxruntime",
    tensorrt: bool = False,
    images: Path | None = None,
    classes: Sequence[str] = (),
    opset: int | None = None,
    max_batch: int = DEFAULT_MAX_BATCH,
    force: bool = False,
    progress: Callable[[str], None] = lambda _text: None,
) -> TeacherCard:
    """Export one teacher, or several as one ensemble, to ``out/name/`` and return its card.

    ``weights``: of an ensemble, one for each source (None where it brings its own); its labels hold at
    ``ensemble_temperature`` alone.
    ``size`` is (height, width) in pixels; whatever is None stays as the source publishes it. ``progress`` gets text as
    the steps begin and end. Raises ValueError for what the caller can put right, FileExistsError for an entry that is
    there and not to be replaced (``force``), GoldenMismatch when the exported file does not answer as PyTorch does;
    then ``out`` is as it was.
    """
    if max_batch < 1:
        raise ValueError(f"max_batch is at least 1, got {max_batch}")
    if tensorrt and triton_backend == "python":
        raise ValueError("--tensorrt is served by Triton's tensorrt backend: drop --triton-backend python")
    if tensorrt:
        from teacherfarm.export.to_tensorrt import require_tensorrt

        require_tensorrt()
    if name:
        refuse_existing(out, check_name(name), force=force)
    given = {
        "activation": activation,
        "channel_order": channel_order,
        "interpolation": interpolation,
        "crop_scale": crop_scale,
        "mean": None if mean is None else tuple(mean),
        "std": None if std is None else tuple(std),
        "height": None if size is None else size[0],
        "width": None if size is None else size[1],
        "classes": tuple(classes) or None,
        "licence": licence or None,
    }
    settings = {key: value for key, value in given.items() if value is not None}

    what = source.name or "the teacher" if isinstance(source, Teacher) else source
    with _step(progress, f"loading {what if isinstance(what, str) else f'{len(what)} teachers'}"):
        teacher = load_source(
            source,
            weights=weights,
            pretrained=pretrained,
            random_weights=random_weights,
            ensemble_temperature=ensemble_temperature,
            size=size,
            settings=settings,
        )
    taps = taps_of(teacher, taps)
    name = check_name(name or teacher.name or name_of(source))
    refuse_existing(out, name, force=force)

    from teacherfarm.export import to_onnx
    from teacherfarm.export.classifier import classifier_file
    from teacherfarm.export.describing import beyond_float16, describe, figures, golden_answers
    from teacherfarm.export.graph import plan_graph
    from teacherfarm.export.probes import as_number_type, make_probes
    from teacherfarm.export.verify import reference_answers, table

    opset = to_onnx.DEFAULT_OPSET if opset is None else opset
    plan = plan_graph(teacher, taps)
    rendering = Rendering(
        height=teacher.height,
        width=teacher.width,
        interpolation=teacher.interpolation,
        antialias=teacher.antialias,
    )
    with _step(progress, "asking PyTorch for reference answers"):
        probes = make_probes(rendering, teacher.channel_order, images=images)
        crops = as_number_type(probes.crops, input_type)
        reference = reference_answers(teacher, plan, crops, input_type)
    with _step(progress, "exporting to ONNX, fp32"):
        model = to_onnx.onnx_bytes(teacher, plan, number_type=input_type, opset=opset)
    teacher_digest = to_onnx.teacher_digest(model)
    comparisons = [_verify(model, "fp32", crops, reference, plan, probes, progress)]
    if precision != "fp32":
        with _step(progress, f"exporting to ONNX, {precision}"):
            model = to_onnx.onnx_bytes(teacher, plan, number_type=input_type, precision=precision, opset=opset)
        comparisons.append(_verify(model, precision, crops, reference, plan, probes, progress))
    backend: TritonBackend = triton_backend
    if tensorrt:
        from teacherfarm.export.to_tensorrt import build_engine, engine_runner

        backend = "tensorrt"
        with _step(progress, f"building a TensorRT engine, {precision} (minutes)"):
            model = build_engine(model, precision=precision, max_batch=max_batch, input_shape=crops.shape[1:])
        comparisons.append(_verify_run(engine_runner(model), precision, crops, reference, plan, probes, progress))
    progress(table(comparisons) + "\n" + beyond_float16(plan, reference))

    head, headless = classifier_file(teacher, plan, reference)
    card = describe(
        teacher,
        plan,
        name=name,
        teacher_digest=teacher_digest,
        model=model,
        rendering=rendering,
        input_type=input_type,
        precision=precision,
        tensorrt=tensorrt,
        opset=opset,
        head=head,
        headless=headless,
        verification=figures(comparisons, probes),
    )
    with _step(progress, "writing"):
        with atomic_entry(out, name, force=force) as folder:
            write_entry(
                folder,
                card,
                backend=backend,
                max_batch=max_batch,
                model=model,
                golden=golden_answers(probes, crops, reference, teacher.activation),
                side_files={} if head is None else {HEAD_FILE: head},
            )
    return card


def _verify(
    model: bytes,
    precision: Precision,
    crops: NDArray[Any],
    reference: Answers,
    plan: GraphPlan,
    probes: Probes,
    progress: Callable[[str], None],
) -> Comparison:
    from teacherfarm.export.verify import onnx_session

    return _verify_run(onnx_session(model), precision, crops, reference, plan, probes, progress)


def _verify_run(
    run: Callable[[NDArray[Any]], Answers],
    precision: Precision,
    crops: NDArray[Any],
    reference: Answers,
    plan: GraphPlan,
    probes: Probes,
    progress: Callable[[str], None],
) -> Comparison:
    """Compare, and raise GoldenMismatch with the comparison when it failed."""
    from teacherfarm.export.verify import compare, run_in_batches, table

    with _step(progress, f"verifying {precision} on {probes.origin}"):
        comparison = compare(run_in_batches(run, crops), reference, plan.activation, precision)
    if not comparison.passed:
        raise GoldenMismatch(
            f"the exported {precision} file does not answer as PyTorch does; nothing was written.\n"
            f"{table([comparison])}\n"
            "  A large difference usually means a wrong normalisation (--mean, --std, --channel-order)"
            + ("; a small one that this teacher needs --precision fp32." if precision != "fp32" else ".")
        )
    return comparison


@contextmanager
def _step(progress: Callable[[str], None], what: str) -> Iterator[None]:
    started = time.perf_counter()
    progress(f"{what} ... ")
    yield
    progress(f"{time.perf_counter() - started:.1f} s\n")
