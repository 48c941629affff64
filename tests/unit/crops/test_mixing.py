import json

import numpy as np
import pytest

from teacherfarm.crops.mixing import (
    Mix,
    draw_cutmix,
    draw_fkd_mix,
    draw_funmatch_mix,
    draw_mixup,
    draw_self_mix,
    mix_crops,
    mix_labels,
    mix_probabilities,
)
from teacherfarm.protos.crop import CropBox
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels


def random_crops(num=4, height=12, width=10):
    return np.random.default_rng(0).integers(0, 256, (num, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("own_share", [0, 1, 64, 127, 128, 200, 255, 256])
def test_mixup_rounds_halves_up_for_every_pair_of_values(own_share):
    first, second = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    crops = np.stack([first, second])[..., None]
    mixed = mix_crops(crops, Mix(kind="mixup", partner=(1, 0), own_share=own_share))
    exact = (crops.astype(np.int64) * own_share + crops[::-1].astype(np.int64) * (256 - own_share) + 128) // 256
    np.testing.assert_array_equal(mixed, exact)


def test_cutmix_takes_the_box_from_the_partner_and_leaves_the_rest():
    crops = random_crops()
    kept = crops.copy()
    mix = Mix(kind="cutmix", partner=(2, 3, 0, 1), box=CropBox(top=2, left=1, height=5, width=6))
    mixed = mix_crops(crops, mix)
    inside = np.zeros((12, 10), bool)
    inside[2:7, 1:7] = True
    np.testing.assert_array_equal(mixed[:, inside], crops[[2, 3, 0, 1]][:, inside])
    np.testing.assert_array_equal(mixed[:, ~inside], crops[:, ~inside])
    np.testing.assert_array_equal(crops, kept)
    assert mix.own_fraction(12, 10) == 1 - 30 / 120
    nothing = Mix(kind="cutmix", partner=(1, 0, 3, 2))
    np.testing.assert_array_equal(mix_crops(crops, nothing), crops)
    assert nothing.own_fraction(12, 10) == 1


def test_crops_in_any_memory_order_mix_alike():
    crops = random_crops()
    mix = Mix(kind="mixup", partner=(1, 2, 3, 0), own_share=77)
    turned = np.asfortranarray(crops)
    np.testing.assert_array_equal(mix_crops(turned, mix), mix_crops(crops, mix))
    np.testing.assert_array_equal(mix_crops(crops[:, ::-1], mix), mix_crops(crops, mix)[:, ::-1])


def test_funmatch_mixes_neighbours_by_one_share_of_at_least_a_half():
    mixes = [draw_funmatch_mix(np.random.default_rng(seed), 5) for seed in range(300)]
    assert all(mix.partner == (4, 0, 1, 2, 3) for mix in mixes)
    shares = np.array([mix.own_share for mix in mixes])
    assert shares.min() >= 128
    assert abs(shares.mean() - 192) < 5 * 37 / np.sqrt(300)


def test_fkd_draws_both_kinds_over_the_whole_batch():
    mixes = [draw_fkd_mix(np.random.default_rng(seed), 16, 32, 32) for seed in range(200)]
    assert all(sorted(mix.partner) == list(range(16)) for mix in mixes)
    num_mixup = sum(mix.kind == "mixup" for mix in mixes)
    assert 60 < num_mixup < 140
    boxes = [mix.box for mix in mixes if mix.box is not None]
    assert all(box.top + box.height <= 32 and box.left + box.width <= 32 for box in boxes)
    assert len({(box.top, box.left, box.height, box.width) for box in boxes}) > 50


def test_cutmix_lambda_is_even_before_the_box_is_cut_off():
    # A box in the middle is never cut off: with a constant centre lambda must be Beta(1, 1), that is even.
    class Centred:
        def __init__(self):
            self.random = np.random.default_rng(0)

        def integers(self, bound):
            return bound // 2

        def __getattr__(self, name):
            return getattr(self.random, name)

    random = Centred()
    fractions = np.sort([draw_cutmix(random, 2, 1000, 1000).own_fraction(1000, 1000) for _ in range(500)])
    assert np.abs(fractions - np.linspace(0, 1, 500)).max() < 0.09


def test_mixup_share_follows_its_beta_distribution():
    shares = np.array([draw_mixup(np.random.default_rng(seed), 2, alpha=0.8).own_share for seed in range(2000)]) / 256
    variance = 1 / (4 * (2 * 0.8 + 1))
    assert abs(shares.mean() - 0.5) < 0.03
    assert abs(shares.var() - variance) < 0.01


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_self_mix_stays_within_each_image(kind):
    mix = draw_self_mix(np.random.default_rng(1), 6, 4, 24, 24, kind=kind)
    assert mix.kind == kind
    partner = np.array(mix.partner)
    # Crop-index-major: row j * 6 + i is crop j of image i.
    np.testing.assert_array_equal(partner % 6, np.tile(np.arange(6), 4))
    assert sorted(partner.tolist()) == list(range(24))
    assert len({tuple(column) for column in (partner // 6).reshape(4, 6).T.tolist()}) > 1


def soft_labels(logits, weight):
    spec = LabelSpec(outputs=("labels",))
    records = np.zeros(len(logits), np.dtype([("labels", "<f2", (logits.shape[1],))]))
    records["labels"] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return SoftLabels(
        records=records,
        spec=spec,
        num_classes=logits.shape[1],
        activation="softmax",
        weight=np.array(weight, np.float32),
    )


def test_labels_mix_as_their_crops_do():
    labels = soft_labels(np.random.default_rng(0).normal(size=(4, 5)), [1, 1, 0, 1])
    mix = Mix(kind="cutmix", partner=(1, 2, 3, 0), box=CropBox(top=0, left=0, height=6, width=5))
    targets, weight = mix_labels(labels, mix, 12, 10, temperature=2.0)
    p = labels.probabilities(2.0)
    np.testing.assert_allclose(targets, 0.75 * p + 0.25 * p[[1, 2, 3, 0]], rtol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)
    assert targets.dtype == np.float32
    # Row 2 has no label, and row 1 is mixed with it.
    assert weight.tolist() == [1, 0, 0, 1]


def test_mixing_probabilities_by_mixup():
    mix = Mix(kind="mixup", partner=(1, 0), own_share=64)
    targets = mix_probabilities(np.eye(2, dtype=np.float32), mix, 8, 8)
    np.testing.assert_allclose(targets, [[0.25, 0.75], [0.75, 0.25]])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "blend", "partner": (0,)}, "'mixup' or 'cutmix'"),
        ({"kind": "mixup", "partner": (0, 2)}, "partners are rows"),
        ({"kind": "mixup", "partner": (0,), "own_share": 257}, "own_share"),
        ({"kind": "mixup", "partner": (0,), "box": CropBox(top=0, left=0, height=1, width=1)}, "belongs to cutmix"),
        ({"kind": "cutmix", "partner": (0,), "own_share": 3}, "follow from its box"),
        ({"kind": "cutmix", "partner": (0,), "box": CropBox(top=0, left=0, height=1, width=1, flip=True)}, "no flip"),
    ],
)
def test_mixes_without_sense_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Mix(**settings)


def test_what_does_not_fit_the_mix_is_refused():
    mix = Mix(kind="cutmix", partner=(1, 0, 3, 2), box=CropBox(top=8, left=0, height=5, width=5))
    with pytest.raises(ValueError, match="does not lie inside crops of 12 x 10"):
        mix_crops(random_crops(), mix)
    with pytest.raises(ValueError, match="for 4 crops, got 3"):
        mix_crops(random_crops(3), mix)
    with pytest.raises(ValueError, match="uint8"):
        mix_crops(random_crops().astype(np.float32), mix)
    with pytest.raises(ValueError, match="for 4 crops, got 2"):
        mix_probabilities(np.ones((2, 3), np.float32), mix, 12, 10)


@pytest.mark.parametrize(
    "mix",
    [
        Mix(kind="mixup", partner=(2, 0, 1), own_share=99),
        Mix(kind="cutmix", partner=(1, 0), box=CropBox(top=1, left=2, height=3, width=4)),
    ],
)
def test_a_mix_survives_json(mix):
    assert Mix.from_dict(json.loads(json.dumps(mix.to_dict()))) == mix
    with pytest.raises(ValueError, match="not a mix"):
        Mix.from_dict({"kind": "mixup"})
    with pytest.raises(ValueError, match="not a mix"):
        Mix.from_dict(mix.to_dict() | {"box": [1, 2]})


def test_a_box_of_another_rendering_covers_the_same_share():
    mix = Mix(kind="cutmix", partner=(1, 0), box=CropBox(top=2, left=3, height=5, width=4))
    assert mix.at((12, 10), (24, 20)).box == CropBox(top=4, left=6, height=10, width=8)
    assert mix.at((12, 10), (36, 10)).at((36, 10), (12, 10)) == mix
    assert mix.at((12, 10), (12, 10)) is mix
    corner = Mix(kind="cutmix", partner=(1, 0), box=CropBox(top=0, left=0, height=5, width=4))
    assert corner.at((12, 10), (1, 1)).box is None
    assert Mix(kind="mixup", partner=(1, 0), own_share=7).at((2, 2), (4, 4)).own_share == 7


def test_a_mix_lets_itself_be_moved_with_a_batch():
    mix = Mix(kind="mixup", partner=(1, 0), own_share=7)
    assert mix.to("cuda", non_blocking=True) is mix
