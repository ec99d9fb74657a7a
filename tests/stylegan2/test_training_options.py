"""Options that change what is trained on and what is trained: labels, subset, frozen layers, shape, types."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from stylegan2.config import ResolvedOptions, TrainingOptions, resolve
from stylegan2.data import ImageStream, check_images
from stylegan2.errors import StyleGAN2Error
from stylegan2.images import to_uint8
from stylegan2.network_folder import read_config, read_tensors
from stylegan2.sampling import load_generator, sample_images
from stylegan2.training import Trainer, train

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "resolution": 16,
    "kimg": 0.008,
    "batch": 4,
    "fmaps": 0.004,
    "channel_max": 8,
    "z_dim": 8,
    "w_dim": 8,
    "mapping_layers": 1,
    "kimg_per_tick": 0.008,
    "grid_size": 2,
    "g_reg_interval": 2,
    "d_reg_interval": 2,
}


def pictures(size: tuple[int, int] = (16, 16), channels: int = 3, count: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, *size, channels)).astype(np.uint8)


def run(
    out: Path, images: NDArray[np.uint8], labels: NDArray[np.float32] | None = None, **changes: Any
) -> Path:
    options = TrainingOptions(**{**SMALL, **changes})
    train(images, options, seed=1, out_dir=out, labels=labels, progress=False)
    return out


def trainer_of(folder: Path, labels: NDArray[np.float32] | None = None, **changes: Any) -> Trainer:
    resolved = resolve(TrainingOptions(**{**SMALL, **changes}))
    images = pictures(resolved.image_size)
    return Trainer(images, resolved, labels=labels, seed=1, device=CPU, progress_dir=folder)


# ----------------------------------------------------------------------------------------------------------
# Strict types
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"mapping_layers": True},
        {"kimg": "3"},
        {"batch": 8.0},
        {"batch": "8"},
        {"gamma": True},
        {"mirror": 1},
        {"mirror": "yes"},
        {"subset": 10.0},
        {"subset": 0},
        {"freezed": True},
        {"freezed": -1},
        {"freezed": 2},  # random layers would stay as they are
        {"ema_rampup": "null"},
        {"init": 3},
        {"kimg": "Auto"},
        {"num_fp16_res": 0.0},
        {"half_precision": "fp16"},
        {"base_grid": [3]},
        {"base_grid": [3, 4, 4]},
        {"base_grid": [3.0, 4]},
        {"base_grid": [True, 4]},
        {"base_grid": [0, 4]},
        {"base_grid": [5, 4]},
        {"base_grid": [3, 3]},
        {"base_grid": "34"},
        {"kid_images": 1},
        {"grow": True},
        {"conv_clamp": 0},
    ],
    ids=str,
)
def test_values_are_not_converted(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ValidationError, match=name):
        TrainingOptions.model_validate({"resolution": 64, **values})


def test_whole_numbers_are_numbers() -> None:
    options = TrainingOptions(resolution=64, kimg=3, lr=1, gamma=0, ema_rampup=None, conv_clamp=256, p=0)
    resolved = resolve(options)
    assert (resolved.kimg, resolved.lr, resolved.gamma, resolved.conv_clamp) == (3.0, 1.0, 0.0, 256.0)
    assert isinstance(resolved.kimg, float)


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingOptions.model_validate({"resolution": 64, "batch": 8.0, "kimg": "3", "bogus": 1})
    assert {error["loc"][0] for error in caught.value.errors()} == {"batch", "kimg", "bogus"}
    with pytest.raises(ValidationError) as caught:
        TrainingOptions(resolution=60, base_grid=[3, 3], grow=True, kid_images=1)
    assert all(name in str(caught.value) for name in ("resolution:", "base_grid:", "grow:", "kid_images:"))


def test_every_option_survives_resolution_and_json() -> None:
    """What training depends on is compared with a checkpoint, as JSON: nothing may be left out."""
    renamed = {"fmaps": "channel_base", "cfg": None}
    for name in TrainingOptions.model_fields:
        assert renamed.get(name, name) is None or renamed.get(name, name) in ResolvedOptions.model_fields
    resolved = resolve(TrainingOptions(resolution=64, base_grid=[3, 4], subset=7))
    assert ResolvedOptions.model_validate(json.loads(resolved.model_dump_json())) == resolved


@pytest.mark.parametrize(
    ("changes", "clamp"),
    [
        ({}, None),
        ({"num_fp16_res": 4}, 256.0),
        ({"num_fp16_res": 0}, None),
        ({"num_fp16_res": 4, "conv_clamp": None}, None),
        ({"conv_clamp": 8}, 8.0),
    ],
)
def test_half_precision_brings_its_clamp(
    changes: dict[str, Any], clamp: float | None, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, **changes)
    assert trainer.options.conv_clamp == clamp
    assert trainer.generator.synthesis.b16.conv1.conv_clamp == clamp
    assert trainer.discriminator.b16.conv1.conv_clamp == clamp
    half = bool(changes.get("num_fp16_res"))
    assert trainer.generator.synthesis.b16.use_fp16 == trainer.discriminator.b16.use_fp16 == half


# ----------------------------------------------------------------------------------------------------------
# Shape of the images
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_grid", "size", "channels"), [([3, 4], (12, 16), 3), ([4, 1], (16, 4), 1), ([4, 4], (16, 16), 1)]
)
def test_images_of_other_shapes(
    base_grid: list[int], size: tuple[int, int], channels: int, tmp_path: Path
) -> None:
    folder = run(tmp_path, pictures(size, channels), base_grid=base_grid, p=0.8)
    generator = load_generator(folder, CPU)
    assert generator.img_size == size
    (image,) = sample_images(generator, [0], 0.7)
    assert image.shape == (*size, channels)
    expected = None if base_grid == [4, 4] else base_grid
    config = read_config(folder)
    assert config["discriminator"].get("base_grid") == expected
    assert config["generator"]["synthesis_kwargs"].get("base_grid") == expected


def test_images_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    expected = r"got uint8 \[6, 16, 12, 3\], expected uint8 \[N, 12, 16, 1 or 3\]"
    with pytest.raises(StyleGAN2Error, match=expected):
        run(tmp_path, pictures((16, 12)), base_grid=[3, 4])


# ----------------------------------------------------------------------------------------------------------
# Labels
# ----------------------------------------------------------------------------------------------------------

ONE_HOT = np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 1, 2]]


def test_labels_travel_with_their_images(tmp_path: Path) -> None:
    """The top left pixel of image i has the value i, also of its mirror image; its label is i as well."""
    count = 5
    images = np.zeros((count, 4, 4, 1), np.uint8)
    images[..., 0] = np.arange(count)[:, None, None]
    images[:, :, 0] = 100  # the left edge: tells mirrored images
    labels = np.arange(count, dtype=np.float32)[:, None]
    for subset in (None, 3):
        stream = ImageStream(images, mirror=True, seed=2, labels=labels, subset=subset)
        shown = to_uint8(stream.batch(3, 40))[:, 0]
        found = stream.label_batch(3, 40)
        assert found is not None
        assert found[:, 0].tolist() == shown[:, 0, 1].tolist()
        assert {bool(image[0, 0] == 100) for image in shown} == {True, False}


def test_drawn_labels_occur_as_often_as_among_the_images() -> None:
    stream = ImageStream(pictures((4, 4)), mirror=True, seed=0, labels=ONE_HOT)
    drawn = stream.random_labels(6000, torch.Generator().manual_seed(0))
    assert drawn is not None
    assert drawn.sum(dim=0).tolist() == pytest.approx([1000, 2000, 3000], abs=150)
    unlabelled = ImageStream(pictures((4, 4)), mirror=True, seed=0)
    assert unlabelled.random_labels(3, torch.Generator()) is None
    assert unlabelled.label_batch(0, 3) is None


def test_the_fingerprint_covers_pixels_and_labels_of_the_subset() -> None:
    def fingerprint(images: NDArray[np.uint8], labels: NDArray[np.float32] | None, subset: int = 6) -> str:
        return ImageStream(images, mirror=False, seed=0, labels=labels, subset=subset).fingerprint()

    images = pictures((4, 4))
    changed = images.copy()
    changed[5, 3, 3, 2] ^= 1
    found = [
        fingerprint(images, ONE_HOT),
        fingerprint(images, ONE_HOT[::-1].copy()),
        fingerprint(images, None),
        fingerprint(changed, None),
        fingerprint(images, None, subset=3),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint(images.copy(), ONE_HOT.copy()) == found[0]


def test_both_networks_see_labels(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, labels=ONE_HOT, cond=True, style_mixing_prob=0)
    mapped: list[Tensor] = []
    judged: list[tuple[Tensor, Tensor]] = []
    trainer.generator.mapping.register_forward_hook(lambda _, inputs, __: mapped.append(inputs[1]))
    trainer.discriminator.register_forward_hook(lambda _, inputs, __: judged.append(inputs))
    trainer.train_iteration()
    real = trainer.stream.label_batch(0, 4)
    assert real is not None
    assert [len(labels) for labels in mapped] == [4, 2, 4]  # Gmain, Greg, Dmain
    for labels in mapped:
        assert labels.sum(dim=1).tolist() == [1] * len(labels)
    # D: generated for G, generated, real, real for R1; each generated image with the label it was made for.
    assert torch.equal(judged[0][1], mapped[0])
    assert torch.equal(judged[1][1], mapped[2])
    assert torch.equal(judged[2][1], real)
    assert torch.equal(judged[3][1], real)
    assert not torch.equal(mapped[0], mapped[2])
    assert not torch.equal(mapped[2], real)


def test_a_conditional_training_can_be_sampled_by_class(tmp_path: Path) -> None:
    folder = run(tmp_path, pictures(), ONE_HOT, cond=True)
    generator = load_generator(folder, CPU)
    assert generator.c_dim == read_config(folder)["discriminator"]["c_dim"] == 3
    images = [next(sample_images(generator, [0], 1.0, class_index=index)) for index in range(3)]
    assert not np.array_equal(images[0], images[1])


def test_labels_are_not_used_unless_asked_for(tmp_path: Path) -> None:
    labelled = run(tmp_path / "a", pictures(), ONE_HOT, kimg=0.004)
    plain = run(tmp_path / "b", pictures(), None, kimg=0.004)
    weights = "generator.safetensors"
    assert (labelled / weights).read_bytes() == (plain / weights).read_bytes()


def test_conditioning_without_labels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StyleGAN2Error, match="cond: the images have no labels; add them or leave cond out"):
        run(tmp_path / "out", pictures(), cond=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((5, 3), np.float32),
        np.zeros((6, 0), np.float32),
        np.zeros(6, np.float32),
        np.zeros((6, 3), np.float64),
        np.full((6, 3), np.nan, np.float32),
    ],
    ids=lambda labels: f"{labels.dtype}{list(labels.shape)}",
)
def test_unusable_labels_are_named_together_with_unusable_images(labels: NDArray[Any]) -> None:
    with pytest.raises(StyleGAN2Error, match=r"labels: got float.*expected finite float32 \[6, 1 or more\]"):
        check_images(pictures(), (16, 16), labels)
    with pytest.raises(StyleGAN2Error, match=r"training images: got .*; labels: got"):
        check_images(pictures(), (8, 8), labels)


# ----------------------------------------------------------------------------------------------------------
# Subset
# ----------------------------------------------------------------------------------------------------------


def shown_by(stream: ImageStream) -> list[int]:
    return sorted(to_uint8(stream.batch(0, stream.size))[:, 0, 0, 0].tolist())


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 5), st.booleans())
def test_a_subset_is_drawn_by_the_seed(subset: int, seed: int, mirror: bool) -> None:
    images = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    chosen = shown_by(ImageStream(images, mirror, seed, subset=subset))
    copies = 2 if mirror else 1
    assert len(chosen) == copies * subset
    assert all(chosen.count(value) == copies for value in chosen)
    assert shown_by(ImageStream(images, mirror, seed, subset=subset)) == chosen
    larger = shown_by(ImageStream(images, mirror, seed, subset=min(subset + 1, 20)))
    assert set(chosen) <= set(larger)  # learning curves: the smaller sets are nested in the larger ones


def test_other_seeds_choose_other_images() -> None:
    images = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    subsets = {tuple(shown_by(ImageStream(images, False, seed, subset=5))) for seed in range(5)}
    assert len(subsets) == 5


def test_a_subset_larger_than_the_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StyleGAN2Error, match="subset: got 7, but there are 6 images; choose at most as many"):
        run(tmp_path / "out", pictures(), subset=7)
    assert not (tmp_path / "out").exists()
    assert trainer_of(tmp_path, subset=6).stream.size == 6


# ----------------------------------------------------------------------------------------------------------
# Frozen layers
# ----------------------------------------------------------------------------------------------------------


def test_frozen_layers_keep_their_weights_and_the_others_learn(tmp_path: Path) -> None:
    first = run(tmp_path / "first", pictures())
    auto = dict.fromkeys(("fmaps", "channel_max", "z_dim", "w_dim", "mapping_layers"), "auto")
    tuned = run(tmp_path / "tuned", pictures(), init=str(first), freezed=5, **auto)
    before, after = (read_tensors(folder / "discriminator.safetensors") for folder in (first, tuned))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # Freeze-D counts from the image on: b16 has fromrgb, conv0, conv1 and skip; b8 begins with conv0.
    frozen = {
        *(f"b16.{layer}.{part}" for layer in ("fromrgb", "conv0", "conv1") for part in ("weight", "bias")),
        "b16.skip.weight",
        "b8.conv0.weight",
        "b8.conv0.bias",
    }
    filters = {name for name in before if name.endswith("resample_filter")}
    assert changed == before.keys() - frozen - filters
    assert read_config(tuned)["discriminator"]["block_kwargs"] == {"freeze_layers": 5}


def test_frozen_layers_are_out_of_the_optimiser_s_reach(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, freezed=7, init="elsewhere")  # all but the head
    names = {name for name, _ in trainer.discriminator.named_parameters()}
    assert all(name.startswith("b4.") for name in names)
    (group,) = trainer.optimizer_d.param_groups
    assert len(group["params"]) == len(names)
    before = {name: value.clone() for name, value in trainer.discriminator.state_dict().items()}
    trainer.train_iteration()
    after = trainer.discriminator.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == names


@pytest.mark.parametrize(
    ("values", "message"),
    [({"grow": True, "freezed": 2}, "needs init and no grow"), ({"freezed": 8}, "have 7 layers in all")],
)
def test_what_cannot_be_frozen(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**{**SMALL, **values}, init="elsewhere")


def test_a_checkpoint_with_frozen_layers_can_be_resumed(tmp_path: Path) -> None:
    resolved = resolve(TrainingOptions(**SMALL, freezed=3, init="elsewhere"))
    file = tmp_path / "checkpoint.safetensors"
    both = [
        Trainer(pictures(), resolved, seed=1, device=CPU, progress_dir=tmp_path, checkpoint=file)
        for _ in range(2)
    ]
    both[0].train_iteration()
    both[0].save()
    both[1].restore()
    for trainer in both:
        trainer.train_iteration()
    first, second = (trainer.discriminator.state_dict() for trainer in both)
    assert all(torch.equal(first[name], second[name]) for name in first)
