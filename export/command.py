"""``teacherfarm export``: arguments in, one verified repository entry out.

Knows the command line and nothing else; heavy libraries load only when an export runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from teacherfarm.export.exporting import DEFAULT_MAX_BATCH, export_teacher
from teacherfarm.export.triton_repository import EntryExists
from teacherfarm.protos.faults import BadTeacher

DESCRIPTION = """\
Export a frozen teacher once: its normalisation goes into the graph, the result is checked against PyTorch on real
images, and OUT/NAME becomes one entry of a Triton model repository that `teacherfarm serve OUT` serves.

SOURCE is one of
  efficientnet-lite0, efficientnet-lite1, efficientnet-lite2
                             ImageNet teachers whose weights ship in packages: ready by name
  torchvision:NAME           a classifier of torchvision.models, with --weights FILE or --pretrained
  timm:NAME                  a model of timm, with --weights FILE or --pretrained
  cifar:NAME                 a network for 32 x 32 images, as distillation papers train them (cifar:resnet32x4,
                             cifar:wrn_40_2, cifar:vgg13), with --weights FILE
  package.module:function    your own: a function without arguments that returns a torch.nn.Module (then give
                             --size, --mean, --std) or a teacherfarm.export.Teacher, which says all of that itself
"""

EXAMPLES = """\
examples:
  teacherfarm export efficientnet-lite0 --out models/
  teacherfarm export torchvision:resnet50 --pretrained --out models/ --tap layer3 --tap layer4
  teacherfarm export timm:resnet50 --weights resnet50.safetensors --out models/ --tap layer4@4x4 --tap layer3@attention
  teacherfarm export timm:vit_small_patch16_224 --weights vit.safetensors --out models/ --precision fp16
  teacherfarm export torchvision:resnet50 timm:senet154 --pretrained --ensemble --name both --out models/
  teacherfarm export my_project.teachers:make --size 64 64 --mean 0.5 0.5 0.5 --std 0.25 0.25 0.25 --out models/

Exit status: 0 written; 1 the exported file does not answer as PyTorch does (nothing is written); 2 wrong arguments.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that ``teacherfarm export`` takes."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="where the teacher comes from (above)")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="the model repository; made if absent")
    parser.add_argument("--name", default="", help="the entry's and the teacher's name (default: from the source)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--force", action="store_true", help="replace an entry of this name")
    existing.add_argument(
        "--if-missing", action="store_true", help="where there is an entry of this name, leave it and report success"
    )

    weights = parser.add_argument_group("weights (never downloaded unasked)").add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        action="append",
        metavar="FILE",
        help="a state dict: .safetensors, or .pth without code; for --ensemble one for each SOURCE, - where it brings "
        "its own",
    )
    weights.add_argument(
        "--pretrained", action="store_true", help="let torchvision or timm fetch its published weights"
    )
    weights.add_argument("--random-weights", action="store_true", help="no teacher at all, for trying things out")

    fed = parser.add_argument_group("how the teacher is fed (default: as its source publishes)")
    fed.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="crop size in pixels")
    fed.add_argument(
        "--mean", type=float, nargs="+", metavar="M", help="per channel, as fractions of full scale: 0.485 0.456 0.406"
    )
    fed.add_argument("--std", type=float, nargs="+", metavar="S", help="likewise: 0.229 0.224 0.225")
    fed.add_argument(
        "--channel-order", choices=("RGB", "BGR", "GRAY"), help="what the teacher takes; crops are sent in this order"
    )
    fed.add_argument(
        "--input-type",
        choices=("uint8", "uint16", "float32"),
        default="uint8",
        help="numbers of the crops on the wire: 0..255, 0..65535 or 0..1 (default uint8)",
    )
    fed.add_argument(
        "--interpolation", choices=("nearest", "bilinear", "bicubic", "area"), help="how students resize its crops"
    )
    fed.add_argument(
        "--crop-scale",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="range of crop areas that it is good at, as fractions of the image (default 0.08 1)",
    )

    together = parser.add_argument_group("several teachers as one")
    together.add_argument(
        "--ensemble", action="store_true", help="answer the mean of all SOURCEs' softmax(z / T), and of their logits"
    )
    together.add_argument(
        "--ensemble-temperature",
        type=float,
        metavar="T",
        help="the only temperature that the ensemble's labels can be used at (default 1)",
    )

    answers = parser.add_argument_group("what it answers")
    answers.add_argument(
        "--activation",
        choices=("softmax", "sigmoid", "none"),
        help="one class, independent classes, or no classes: embeddings (default: softmax for classifiers)",
    )
    answers.add_argument(
        "--tap",
        action="append",
        default=[],
        metavar="MODULE",
        dest="taps",
        help="also return this submodule's output (after an activation that follows it) under its path; MODULE@4x4: "
        "averaged to 4 x 4 positions; MODULE@attention, MODULE@attention4x4: its attention map; repeatable",
    )
    answers.add_argument(
        "--classes", type=Path, metavar="FILE", help="class names, one a line; their number sizes the head"
    )
    answers.add_argument("--licence", default="", help="licence of the weights, for the card")

    built = parser.add_argument_group("how it is built and checked")
    built.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32", help="of weights and sums (default fp32)"
    )
    built.add_argument(
        "--images", type=Path, metavar="FOLDER", help="photographs to verify with (default: installed ones)"
    )
    built.add_argument("--opset", type=int, help="ONNX operator set (default 18)")
    built.add_argument(
        "--max-batch",
        type=int,
        default=DEFAULT_MAX_BATCH,
        help=f"largest teacher batch (default {DEFAULT_MAX_BATCH})",
    )
    built.add_argument(
        "--triton-backend",
        choices=("onnxruntime", "python"),
        default="onnxruntime",
        help="which of Triton's backends runs it (python: ONNX Runtime inside a model.py)",
    )
    built.add_argument("--tensorrt", action="store_true", help="build a TensorRT engine for this machine's GPU")


def main(options: argparse.Namespace) -> int:
    """Run one export; complaints go to standard error."""
    try:
        source, weights = _what_to_export(options)
        card = export_teacher(
            source,
            options.out,
            name=options.name,
            weights=weights,
            pretrained=options.pretrained,
            random_weights=options.random_weights,
            precision=options.precision,
            activation=options.activation,
            channel_order=options.channel_order,
            input_type=options.input_type,
            size=None if options.size is None else (options.size[0], options.size[1]),
            interpolation=options.interpolation,
            crop_scale=None if options.crop_scale is None else (options.crop_scale[0], options.crop_scale[1]),
            mean=options.mean,
            std=options.std,
            licence=options.licence,
            ensemble_temperature=1.0 if options.ensemble_temperature is None else options.ensemble_temperature,
            taps=options.taps,
            triton_backend=options.triton_backend,
            tensorrt=options.tensorrt,
            images=options.images,
            classes=() if options.classes is None else read_classes(options.classes),
            opset=options.opset,
            max_batch=options.max_batch,
            force=options.force,
            progress=_write,
        )
    except BadTeacher as fault:
        print(f"\nteacherfarm export: {fault}", file=sys.stderr)
        return 1
    except EntryExists as error:
        if options.if_missing:
            print("\nthere is an entry of this name already: it stays as it is")
            return 0
        print(f"\nteacherfarm export: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        needs = 'pip install "teacherfarm[export]" brings what export itself needs'
        print(f"\nteacherfarm export: {error.name} is not installed; {needs}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"\nteacherfarm export: {error}", file=sys.stderr)
        return 2
    outputs = ", ".join(card.graph_outputs)
    print(f"{options.out / card.name}: {card.crop_format.describe()} -> {outputs}")
    print(f"teacher digest {card.teacher_digest}")
    print(f"next: teacherfarm serve {options.out}")
    return 0


def _what_to_export(options: argparse.Namespace) -> tuple[str | list[str], Path | list[Path | None] | None]:
    """One source or an ensemble's, and the weight files for them."""
    files = None if options.weights is None else [None if file == "-" else Path(file) for file in options.weights]
    if options.ensemble:
        return options.sources, files
    if len(options.sources) > 1:
        raise ValueError(f"{len(options.sources)} sources: one teacher has one; several become one by --ensemble")
    if options.ensemble_temperature is not None:
        raise ValueError(
            "--ensemble-temperature is for --ensemble: one teacher's labels can be used at any temperature"
        )
    if files is not None and len(files) > 1:
        raise ValueError(f"{len(files)} --weights for one teacher")
    return options.sources[0], files[0] if files else None


def read_classes(file: Path) -> tuple[str, ...]:
    """Class names, one a line, in order. Raises ValueError for a missing or empty file and for names that repeat."""
    try:
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--classes {file}: cannot be read ({error})") from error
    if not names:
        raise ValueError(f"--classes {file}: no names in it; write one class name a line")
    return names


def _write(text: str) -> None:
    print(text, end="", flush=True)
