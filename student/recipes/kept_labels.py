"""What ``--labels``, ``--label-maps`` and ``--record`` mean for a run: whose labels, of which crops, from where."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.label_store.label_directory import LabelDirectory
from teacherfarm.label_store.manifest import Manifest
from teacherfarm.label_store.recorded_card import read_card, write_card
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.crop_dataset import CropDataset
from teacherfarm.student.image_sources import ImageSource, SampleImages
from teacherfarm.student.label_maps import LabelMapTeacher
from teacherfarm.student.label_pass import LabelSource, LabelSourceBySample
from teacherfarm.student.methods.method import Method, MethodMismatch
from teacherfarm.student.recipes.folders import find_samples
from teacherfarm.student.recipes.imagenet_synsets import WORDNET_IDS
from teacherfarm.student.recipes.ranks import Ranks
from teacherfarm.student.recorded_boxes import RecordedBoxes
from teacherfarm.student.recorded_teacher import OnMissing, RecordedTeacher
from teacherfarm.student.recording_teacher import RecordingTeacher, Teacher


class KeptLabels:
    """The labels that a run replays and those that it records; neither where the options name none.

    ``options``: the run's, with what the recorded labels decide filled in (order, views).
    """

    def __init__(self, options: argparse.Namespace) -> None:
        replayed = options.labels
        if replayed is not None and replayed == options.record and not LabelDirectory(replayed).exists():
            replayed = None  # the first run of several, which replays what it has recorded itself
        if options.teacher_address is None and replayed is None and options.label_maps is None:
            raise ValueError(
                "who labels? Give --teacher-address ADDRESS, or --labels DIR or --label-maps DIR to train without one"
            )
        if options.label_maps is not None and (options.teacher_address, replayed, options.record) != (None, None, None):
            raise ValueError("--label-maps label every crop: leave --teacher-address, --labels and --record out")
        if options.record is not None and options.teacher_address is None:
            raise ValueError("--record keeps what a teacher streams: give --teacher-address as well")
        self.recorded = None if replayed is None else RecordedLabels.open(replayed)
        self.options = _filled(options, None if self.recorded is None else self.recorded.manifest)
        self.asks = options.teacher_address is not None
        self._recording: RecordingTeacher | None = None
        self._replaying: list[RecordedTeacher] = []
        self._closing = contextlib.ExitStack()

    def __str__(self) -> str:
        recorded = self.recorded
        if recorded is None:
            return "all streamed"
        spec, views, images = recorded.manifest.spec, recorded.manifest.views, len(recorded.index)
        kind = f"the {spec.top_k} best classes at T={spec.temperature:g}" if spec.top_k else "dense"
        return f"{self.options.labels}: {len(recorded)} of {images * views} ({views} views of {images} images), {kind}"

    def decided_for(self, method: type[Method], card: TeacherCard) -> dict[str, Any]:
        """The settings of a method that recorded top-k labels decide where nobody says otherwise; a teacher of a few
        classes has no more of them to ask for.
        """
        spec = LabelSpec() if self.recorded is None else self.recorded.manifest.spec
        known: dict[str, Any] = {setting.name: setting.default for setting in dataclasses.fields(method.Settings)}
        decided = {"top_k": spec.top_k, "temperature": spec.temperature} if spec.top_k else {}
        if 0 < card.num_classes < known.get("top_k", 0):
            decided.setdefault("top_k", card.num_classes)
        return {name: value for name, value in decided.items() if name in known}

    def card(self, teacher: Teacher | None) -> TeacherCard:
        """The teacher's card, or the recorded one where no teacher is asked; label maps have the data's classes."""
        if teacher is not None:
            return teacher.card
        if self.options.label_maps is not None:
            return label_maps_card(self.options)
        assert self.recorded is not None
        return read_card(self.options.labels, self.recorded.manifest)

    def spec(self, card: TeacherCard, asked: LabelSpec) -> LabelSpec:
        """What labels will hold: what a method asks, or what is recorded. Whether recorded classes are enough, the
        method says itself.

        Raises MethodMismatch where an output is missing, LabelsMismatch where labels are another teacher's or of other
        crops.
        """
        asked = asked.resolve(card)
        if self.recorded is None:
            return asked
        manifest = self.recorded.manifest
        spec = manifest.spec
        if set(asked.outputs) - set(spec.outputs):
            raise MethodMismatch(
                f"method {self.options.method} asks for {', '.join(asked.outputs)}, {self.options.labels} holds "
                f"{', '.join(spec.outputs)}: stream them, record them with --record DIR, or choose another --method"
            )
        wanted = Manifest.of(
            card,
            spec,
            plan=manifest.plan,
            rendering=card.rendering if self.asks else manifest.rendering,
            views=manifest.views,
            samples="",
            has_boxes=manifest.has_boxes,
        )
        self.recorded.check(wanted)
        return spec

    def plan(self, card: TeacherCard, source: ImageSource) -> CropPlan:
        """The recorded crop plan or boxes, whatever the run's own seed; one of the run's own where none is replayed."""
        options = self.options
        scale = tuple(options.crop_scale) if options.crop_scale else None
        if self.recorded is None:
            return CropPlan(seed=options.seed, scale=scale or card.crop_scale, ratio=card.crop_ratio)
        plan = self.recorded.manifest.plan
        if plan is None:
            for given, option in (
                (scale, "--crop-scale"),
                (options.record, "--record"),
                (options.by_reference, "--by-reference"),
            ):
                if given:
                    raise ValueError(f"{options.labels} has a box of its own for each label: leave {option} out")
            return RecordedBoxes.of(self.recorded, source, seed=options.seed)
        return plan if scale is None else dataclasses.replace(plan, scale=scale)

    def source(self, dataset: CropDataset, teacher: Teacher | None, ranks: Ranks) -> LabelSource | LabelSourceBySample:
        """Who answers this data set's crops; all ranks ask together."""
        if self.options.label_maps is not None:
            on_missing: OnMissing = "skip" if self.options.on_starved == "skip" else "raise"
            card, upright = label_maps_card(self.options), self.options.upright_maps
            maps = LabelMapTeacher(self.options.label_maps, dataset, card, upright=upright, on_missing=on_missing)
            self._closing.callback(maps.close)
            return maps
        live: Teacher | RecordingTeacher | None = teacher
        if self.options.record is not None and teacher is not None:
            if self._recording is None:
                self._recording = self._record(dataset, teacher, ranks)
            else:
                self._recording.serve(dataset)
            live = self._recording
        if self.options.labels is None:
            assert live is not None
            return live
        labels = self.recorded or RecordedLabels.open(self.options.labels)
        on_missing = "skip" if self.options.on_starved == "skip" else "raise"
        replaying = RecordedTeacher(labels, dataset, otherwise=live, on_missing=on_missing)
        self._replaying = [replaying]
        return replaying

    def begin_pass(self, ranks: Ranks) -> None:
        """Let a pass replay what the ones before it have recorded."""
        if self._recording is not None and self._replaying:
            self._recording.commit()
            ranks.meet()
            for replaying in self._replaying:
                replaying.refresh()

    def close(self, *, seal: bool) -> None:
        """End the recording, if any, and the reading of label maps."""
        self._closing.close()
        if self._recording is not None:
            self._recording.close(seal=seal)

    def finish(self, ranks: Ranks, say: Callable[[str], None]) -> bool:
        """Seal what was recorded and say how it went; whether all of it was kept, on every rank."""
        recording = self._recording
        if recording is None:
            return True
        recording.close()
        stopped = ranks.any(recording.stopped is not None)
        if recording.stopped is not None:
            say(f"recording stopped: {recording.stopped}")
        elif stopped:
            say("recording stopped on another rank, which says why")
        if not stopped:
            labels = RecordedLabels.open(str(self.options.record))
            total = len(labels.index) * labels.manifest.views
            again = "order cycle" if self.options.order == "fresh" else f"order {self.options.order}"
            say(
                f"recorded {self.options.record}: {len(labels)} of {total} labels ({labels.manifest.views} views of "
                f"{len(labels.index)} images); --labels {self.options.record} --{again} trains from the same ones, "
                "which no teacher is asked for again"
            )
        return not stopped

    def _record(self, dataset: CropDataset, teacher: Teacher, ranks: Ranks) -> RecordingTeacher:
        options = self.options
        views = options.views or (self.recorded.manifest.views if self.recorded else options.epochs)

        def open_recording() -> RecordingTeacher:
            new = ranks.first and not LabelDirectory(options.record).exists()
            with tqdm(total=len(dataset), desc="indexing", unit=" images", disable=None if new else True) as bar:
                return RecordingTeacher(
                    teacher,
                    dataset,
                    options.record,
                    views=views,
                    again=options.labels is not None,
                    progress=advance(bar),
                )

        if ranks.first:
            recording = open_recording()
            write_card(options.record, teacher.card)
        ranks.meet()
        return recording if ranks.first else open_recording()


def label_maps_card(options: argparse.Namespace) -> TeacherCard:
    """Whoever made label maps: a teacher of the training data's own classes, in their order; of all of ImageNet's
    where these are some of them.
    """
    classes = SampleImages(find_samples(options.data, options.train_folder, "--train-folder")).classes
    imagenets = set(classes) <= set(WORDNET_IDS)
    size = options.student_size or 224
    return TeacherCard(
        name="label maps",
        teacher_digest="",
        artifact_digest="",
        model_file="",
        crop_format=CropFormat(height=size, width=size),
        rendering=Rendering(height=size, width=size),
        num_classes=len(WORDNET_IDS) if imagenets else len(classes),
        activation="softmax",
        features=(),
        classes=() if imagenets else tuple(classes),
    )


def advance(bar: tqdm[Any]) -> Callable[[int], None]:
    """``progress`` functions tell how many more are done, and want no answer."""

    def more(done: int) -> None:
        bar.update(done)

    return more


def _filled(options: argparse.Namespace, manifest: Manifest | None) -> argparse.Namespace:
    """The options with defaults where the user said nothing: the recorded labels' own, where some are replayed."""
    filled = argparse.Namespace(**vars(options))
    if filled.order is None:
        filled.order = "permute" if manifest is not None and filled.record is None else "fresh"
    if manifest is not None and filled.order != "fresh" and filled.views is None:
        filled.views = manifest.views
    return filled
