"""Fine-tuning: weights and architecture are adopted, mismatches named, networks grown."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from stylegan2.checkpoint import load_checkpoint, save_checkpoint
from stylegan2.config import ResolvedOptions, TrainingOptions, resolve
from stylegan2.errors import StyleGAN2Error
from stylegan2.images import image_grid, to_uint8
from stylegan2.network_folder import read_config, read_tensors, save_weights, write_config
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.ops.upfirdn2d import upsample2d
from stylegan2.randomness import Stream, derive_seed
from stylegan2.sampling import generate, load_generator
from stylegan2.training import CHECKPOINT, Trainer, train
from stylegan2.transfer import SourceNetworks, load_source, network_kwargs

CPU = torch.device("cpu")
WIDTHS = {"channel_base": 96, "channel_max": 6}
SHORT: dict[str, Any] = {"resolution": 16, "kimg": 0.008, "batch": 4, "kimg_per_tick": 0.008, "grid_size": 2}


def pictures(size: tuple[int, int] = (16, 16), channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (4, *size, channels)).astype(np.uint8)


def run(out: Path, checkpoint_dir: Path | None = None, size: int = 16, **changes: Any) -> Path:
    options = TrainingOptions(**{**SHORT, "resolution": size, **changes})
    images = pictures((size, size))
    train(images, options, seed=1, out_dir=out, checkpoint_dir=checkpoint_dir, progress=False)
    return out


def shaken(network: nn.Module, seed: int) -> nn.Module:
    """Move every parameter off its initial value: biases and noise strengths are no longer 0."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=rng)
    return network


def write_folder(
    folder: Path,
    resolution: int = 16,
    c_dim: int = 0,
    img_channels: int = 3,
    g_architecture: str = "skip",
    d_architecture: str = "resnet",
    **common: Any,
) -> Path:
    """Write a folder as training does, with networks that are as good as trained."""
    torch.manual_seed(0)
    size = {"c_dim": c_dim, "img_resolution": resolution, "img_channels": img_channels}
    shape: dict[str, Any] = {**WIDTHS, **common}
    generator = Generator(
        **size,
        z_dim=5,
        w_dim=7,
        mapping_kwargs={"num_layers": 3},
        synthesis_kwargs={**shape, "architecture": g_architecture},
    )
    discriminator = Discriminator(**size, **shape, architecture=d_architecture)
    save_weights(folder / "generator.safetensors", shaken(generator, 1))
    save_weights(folder / "generator_raw.safetensors", shaken(generator, 2))
    save_weights(folder / "discriminator.safetensors", shaken(discriminator, 3))
    networks = {"generator": generator.init_kwargs, "discriminator": discriminator.init_kwargs}
    write_config(folder, networks)
    return folder


def resolved_from(source: SourceNetworks, **changes: Any) -> ResolvedOptions:
    options = TrainingOptions(**{**SHORT, "init": str(source.folder), **changes})
    return resolve(options, source=source.architecture)


def networks_from(
    source: SourceNetworks, options: ResolvedOptions, c_dim: int = 0
) -> tuple[Generator, Generator, Discriminator]:
    """Generator, average and discriminator as a training starts with them."""
    generator_kwargs, discriminator_kwargs = network_kwargs(options, 3, c_dim, source)
    networks = (
        Generator(**generator_kwargs),
        Generator(**generator_kwargs),
        Discriminator(**discriminator_kwargs),
    )
    load_source(source, *networks)
    return networks


def same_tensors(network: nn.Module, tensors: dict[str, Tensor]) -> bool:
    state = network.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in state)


@pytest.fixture(scope="module")
def source_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("source"))


@pytest.fixture
def source(source_folder: Path) -> SourceNetworks:
    return SourceNetworks.load(str(source_folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training whose average lags far behind its generator."""
    widths = {"fmaps": 0.003, "channel_max": 6, "z_dim": 5, "w_dim": 7, "mapping_layers": 3}
    return run(tmp_path_factory.mktemp("gan") / "out", **widths, ema_kimg=0.01, ema_rampup=None)


# ----------------------------------------------------------------------------------------------------------
# Going on from a folder
# ----------------------------------------------------------------------------------------------------------


def test_the_first_grid_is_the_last_of_the_training_that_is_gone_on_from(
    finished: Path, tmp_path: Path
) -> None:
    tuned = run(tmp_path / "tuned", init=str(finished), kimg=0.004)
    first = tuned / "samples" / "generated_000000000.png"
    assert first.read_bytes() == (finished / "samples" / "generated_000000008.png").read_bytes()
    last = tuned / "samples" / "generated_000000004.png"
    assert first.read_bytes() != last.read_bytes()
    config = read_config(tuned)
    for network in ("generator", "discriminator"):
        assert config[network] == read_config(finished)[network]
    assert config["init_sha256"] == SourceNetworks.load(str(finished)).sha256


def test_average_and_generator_go_on_from_their_own_weights(finished: Path, tmp_path: Path) -> None:
    source = SourceNetworks.load(str(finished))
    options = resolved_from(source)
    trainer = Trainer(pictures(), options, source=source, seed=1, device=CPU, progress_dir=tmp_path)
    raw, average = (read_tensors(finished / f"{name}.safetensors") for name in ("generator_raw", "generator"))
    assert any(not torch.equal(raw[name], average[name]) for name in raw)
    assert same_tensors(trainer.generator, raw)
    assert same_tensors(trainer.average, average)
    assert same_tensors(trainer.discriminator, read_tensors(finished / "discriminator.safetensors"))


def test_without_the_raw_generator_its_average_takes_its_place(source_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(source_folder, folder)
    (folder / "generator_raw.safetensors").unlink()
    source = SourceNetworks.load(str(folder))
    generator, average, _ = networks_from(source, resolved_from(source))
    averaged = read_tensors(folder / "generator.safetensors")
    assert same_tensors(generator, averaged)
    assert same_tensors(average, averaged)


@pytest.mark.parametrize("changed", ["generator", "generator_raw", "discriminator"])
def test_the_checksum_covers_every_file_of_weights(changed: str, source_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(source_folder, folder)
    before = SourceNetworks.load(str(source_folder)).sha256
    assert SourceNetworks.load(str(folder)).sha256 == before
    path = folder / f"{changed}.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert SourceNetworks.load(str(folder)).sha256 != before


def test_missing_weights_are_named(source_folder: Path, tmp_path: Path) -> None:
    write_config(tmp_path, read_config(source_folder))
    with pytest.raises(StyleGAN2Error, match=r"no generator\.safetensors and no discriminator\.safetensors"):
        SourceNetworks.load(str(tmp_path))


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize(
    "kwargs", [None, {}, {"c_dim": 0, "img_resolution": 16, "img_channels": 3, "bogus": 1}]
)
def test_an_unusable_config_is_named(
    network: str, kwargs: dict[str, Any] | None, source_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(source_folder, folder)
    write_config(folder, {**read_config(folder), network: kwargs})
    with pytest.raises(StyleGAN2Error, match=r"config\.json: .*(is missing|these arguments build no)"):
        SourceNetworks.load(str(folder))


# ----------------------------------------------------------------------------------------------------------
# Going on from the best snapshot
# ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def best(source_folder: Path, tmp_path: Path) -> Path:
    """The best snapshot that a training leaves, with an average of its own."""
    source = SourceNetworks.load(str(source_folder))
    training = tmp_path / "training"
    options = resolved_from(source)
    trainer = Trainer(pictures(), options, source=source, seed=1, device=CPU, progress_dir=training)
    better = shaken(Generator(**source.generator), 9)
    trainer.snapshots.best = dict(better.state_dict())
    trainer.export(training, {"command": "train"})
    return training / "best"


def test_the_best_snapshot_goes_on_against_the_discriminator_of_its_training(best: Path) -> None:
    source = SourceNetworks.load(str(best))
    networks = networks_from(source, resolved_from(source))
    averaged = read_tensors(best / "generator.safetensors")
    assert not same_tensors(networks[1], read_tensors(best.parent / "generator.safetensors"))
    assert same_tensors(networks[0], averaged) and same_tensors(networks[1], averaged)
    assert same_tensors(networks[2], read_tensors(best.parent / "discriminator.safetensors"))
    assert source.sha256 != SourceNetworks.load(str(best.parent)).sha256


def test_a_training_starts_from_the_best_snapshot_whatever_its_path(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = run(tmp_path / "tuned", init=str(best), kimg=0.004)
    sha256 = read_config(tuned)["init_sha256"]
    (tmp_path / "link").symlink_to(best)
    monkeypatch.chdir(best)
    for init in (".", str(tmp_path / "link")):
        assert SourceNetworks.load(init).sha256 == sha256


def test_the_checksum_covers_the_discriminator_beside_the_best_snapshot(best: Path) -> None:
    before = SourceNetworks.load(str(best)).sha256
    other = Discriminator(**read_config(best)["discriminator"])
    save_weights(best.parent / "discriminator.safetensors", other)
    assert SourceNetworks.load(str(best)).sha256 != before


@pytest.mark.parametrize("absent", ["config.json", "discriminator.safetensors"])
def test_a_best_snapshot_needs_its_training_around_it(absent: str, best: Path) -> None:
    (best.parent / absent).unlink()
    with pytest.raises(StyleGAN2Error, match=rf"best snapshot .* has no {absent}; expected it in the folder"):
        SourceNetworks.load(str(best))


def test_a_best_snapshot_among_another_training_is_refused(best: Path) -> None:
    config = read_config(best.parent)
    write_config(best.parent, {**config, "seed": 2, "images_seen": 4, "added": True})
    with pytest.raises(StyleGAN2Error, match=r"another training .* differs in added, images_seen, seed; exp"):
        SourceNetworks.load(str(best))


def test_a_best_snapshot_with_a_discriminator_of_its_own_stands_alone(best: Path) -> None:
    shutil.copy(best.parent / "discriminator.safetensors", best)
    (best.parent / "config.json").unlink()
    assert SourceNetworks.load(str(best)).discriminator_folder == best


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A kept snapshot of a training, taken before its end."""
    training = run(
        tmp_path / "training", kimg=0.016, keep_snapshots=True, snapshot_ticks=1, aug="fixed", p=0.5
    )
    return training / "snapshots" / "000000008"


def test_a_kept_snapshot_goes_on_against_the_discriminator_of_its_training(
    kept: Path, tmp_path: Path
) -> None:
    training = kept.parent.parent
    source = SourceNetworks.load(str(kept))
    assert source.discriminator_folder == training
    networks = networks_from(source, resolved_from(source))
    averaged = read_tensors(kept / "generator.safetensors")
    assert not same_tensors(networks[1], read_tensors(training / "generator.safetensors"))
    assert same_tensors(networks[0], averaged) and same_tensors(networks[1], averaged)
    assert same_tensors(networks[2], read_tensors(training / "discriminator.safetensors"))
    last = SourceNetworks.load(str(training / "snapshots" / "000000016"))
    assert last.discriminator_folder == training
    assert len({source.sha256, last.sha256, SourceNetworks.load(str(training)).sha256}) == 3
    tuned = run(tmp_path / "tuned", init=str(kept), kimg=0.004)
    assert read_config(tuned)["init_sha256"] == source.sha256


@pytest.mark.parametrize("absent", ["config.json", "discriminator.safetensors"])
def test_a_kept_snapshot_needs_its_training_around_it(absent: str, kept: Path) -> None:
    (kept.parent.parent / absent).unlink()
    message = rf"a kept snapshot .* has no {absent}; expected it in snapshots in the folder of its training"
    with pytest.raises(StyleGAN2Error, match=message):
        SourceNetworks.load(str(kept))


def test_a_kept_snapshot_among_another_training_is_refused(kept: Path) -> None:
    training = kept.parent.parent
    config = read_config(training)
    write_config(training, {**config, "seed": 2, "images_seen": 4})  # it cannot have had more than its end
    with pytest.raises(
        StyleGAN2Error, match=r"a kept snapshot of another .* differs in images_seen, seed; exp"
    ):
        SourceNetworks.load(str(kept))


# ----------------------------------------------------------------------------------------------------------
# Architecture
# ----------------------------------------------------------------------------------------------------------


def test_what_is_auto_is_adopted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, d_architecture="skip", num_fp16_res=1, conv_clamp=64.0)
    source = SourceNetworks.load(str(folder))
    options = resolved_from(source, cfg="cifar", mbstd_group=2)
    expected = {
        **WIDTHS,
        "z_dim": 5,
        "w_dim": 7,
        "mapping_layers": 3,
        "num_fp16_res": 1,
        "conv_clamp": 64.0,
        "d_architecture": "skip",
        "mbstd_group": 2,
        "ema_rampup": None,
        "ada_kimg": 100.0,
    }
    assert {name: getattr(options, name) for name in expected} == expected
    generator, _, discriminator = networks_from(source, options)
    assert generator.init_kwargs == read_config(folder)["generator"]
    changed = {"epilogue_kwargs": {"mbstd_group_size": 2}}
    assert discriminator.init_kwargs == {**read_config(folder)["discriminator"], **changed}


def test_what_shapes_no_weights_may_be_changed(tmp_path: Path) -> None:
    source = SourceNetworks.load(str(write_folder(tmp_path, num_fp16_res=2, conv_clamp=64.0)))
    options = resolved_from(
        source, num_fp16_res=1, half_precision="bfloat16", conv_clamp=None, mbstd_group=1, freezed=1
    )
    generator, _, discriminator = networks_from(source, options)
    for kwargs in (generator.init_kwargs["synthesis_kwargs"], discriminator.init_kwargs):
        assert (kwargs["num_fp16_res"], kwargs["half_dtype"], kwargs["conv_clamp"]) == (1, "bfloat16", None)
    assert discriminator.b4.mbstd is not None
    assert discriminator.b4.mbstd.group_size == 1
    assert "b16.fromrgb.weight" in dict(discriminator.named_buffers())


def test_half_precision_is_channels_last_and_limited(tmp_path: Path) -> None:
    source = SourceNetworks.load(str(write_folder(tmp_path)))
    options = resolved_from(source, num_fp16_res=2)
    assert options.conv_clamp == 256
    generator, _, discriminator = networks_from(source, options)
    assert generator.synthesis.b16.channels_last and discriminator.b16.channels_last
    assert not generator.synthesis.b4.channels_last


def test_layers_that_the_source_froze_are_trained_again(tmp_path: Path) -> None:
    write_folder(tmp_path)
    config = read_config(tmp_path)
    config["discriminator"]["block_kwargs"] = {"freeze_layers": 3}
    write_config(tmp_path, config)
    source = SourceNetworks.load(str(tmp_path))
    _, _, discriminator = networks_from(source, resolved_from(source))
    assert "b16.fromrgb.weight" in dict(discriminator.named_parameters())


def test_every_explicit_mismatch_is_named_at_once(source_folder: Path, tmp_path: Path) -> None:
    widths = {"fmaps": 0.5, "channel_max": 64, "z_dim": 32, "w_dim": 16, "mapping_layers": 8}
    with pytest.raises(StyleGAN2Error) as caught:
        run(tmp_path / "out", init=str(source_folder), **widths)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"init: {source_folder} cannot be fine-tuned like this:"
    assert lines[1:] == [
        "  - fmaps: the networks have channel_base 96, the options ask for 16384; leave fmaps at auto",
        "  - channel_max: the networks have channel_max 6, the options ask for 64; leave channel_max at auto",
        "  - z_dim: the networks have z_dim 5, the options ask for 32; leave z_dim at auto",
        "  - w_dim: the networks have w_dim 7, the options ask for 16; leave w_dim at auto",
        "  - mapping_layers: the networks have mapping_layers 3, the options ask for 8; leave mapping_layers "
        "at auto",
    ]
    assert not (tmp_path / "out").exists()


def test_explicit_values_that_agree_are_no_mismatch(source: SourceNetworks) -> None:
    same = {"fmaps": 96 / 32768, "channel_max": 6, "z_dim": 5, "w_dim": 7, "mapping_layers": 3}
    options = TrainingOptions(**SHORT, init="x", **same)
    assert source.problems(options, resolve(options, source=source.architecture), channels=3, c_dim=0) == []


def test_all_that_does_not_fit_the_images_is_named_at_once(source_folder: Path, tmp_path: Path) -> None:
    options = TrainingOptions(
        **{**SHORT, "resolution": 32, "base_grid": [3, 4], "cond": True, "init": str(source_folder)}
    )
    labels = np.eye(4, dtype=np.float32)
    with pytest.raises(StyleGAN2Error) as caught:
        train(pictures((24, 32), 1), options, seed=1, out_dir=tmp_path / "out", labels=labels, progress=False)
    assert str(caught.value).splitlines()[1:] == [
        "  - resolution: the networks have 16, the options ask for 32; ask for 16 (--resolution 16, with "
        "--resize for images of another size), or set grow to start the missing layers afresh",
        "  - img_channels: the networks have 3, the images 1",
        "  - c_dim: the networks have 0, the labels 4",
        "  - base_grid: the networks have [4, 4], the options ask for [3, 4]",
    ]
    assert not (tmp_path / "out").exists()


def test_what_only_the_networks_make_impossible_is_named(source_folder: Path, tmp_path: Path) -> None:
    """The options alone know neither how wide nor of what architecture the networks are."""
    source = SourceNetworks.load(str(source_folder))
    options = TrainingOptions(resolution=128, init=str(source_folder), grow=True)
    found = source.problems(options, resolve(options, source=source.architecture), channels=3, c_dim=0)
    fmaps = WIDTHS["channel_base"] / 32768
    assert found == [
        f"resolution: networks of {fmaps:g} fmaps would have no feature maps at 128; grow them to 64 at most"
    ]
    folder = write_folder(tmp_path / "orig", d_architecture="orig")
    source = SourceNetworks.load(str(folder))
    options = TrainingOptions(resolution=16, init=str(folder), freezed=7)  # possible with resnet
    found = source.problems(options, resolve(options, source=source.architecture), channels=3, c_dim=0)
    assert found == ["freezed: got 7, but the blocks have 5 layers in all"]


def test_a_subset_of_more_images_than_there_are_is_named_with_the_rest(
    source_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(StyleGAN2Error) as caught:
        run(tmp_path / "out", init=str(source_folder), z_dim=6, subset=5)
    assert "subset: got 5, but there are 4 images" in str(caught.value)
    assert "z_dim: the networks have z_dim 5" in str(caught.value)


@pytest.mark.parametrize("grow", [False, True])
def test_networks_of_a_higher_resolution_are_refused(grow: bool, source_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StyleGAN2Error, match=r"resolution: the networks have 16, .*8; ask for 16") as caught:
        run(tmp_path / "out", init=str(source_folder), size=8, grow=grow)
    assert "set grow" not in str(caught.value)


def test_images_do_not_hide_options_that_do_not_fit(source_folder: Path, tmp_path: Path) -> None:
    options = TrainingOptions(**{**SHORT, "resolution": 8, "z_dim": 6, "init": str(source_folder)})
    with pytest.raises(StyleGAN2Error) as caught:
        train(pictures((16, 16), 3), options, seed=1, out_dir=tmp_path / "out", progress=False)
    for part in (
        "training images: got uint8",
        "z_dim: the networks have z_dim 5",
        "(--resolution 16, with --resize",
    ):
        assert part in str(caught.value)


def test_labels_and_base_grid_of_the_networks_are_kept(tmp_path: Path) -> None:
    source = SourceNetworks.load(str(write_folder(tmp_path, c_dim=2, base_grid=(3, 4))))
    options = resolved_from(source, base_grid=[3, 4], cond=True)
    generator, _, discriminator = networks_from(source, options, c_dim=2)
    assert generator.img_size == discriminator.img_size == (12, 16)
    assert generator.c_dim == discriminator.c_dim == 2


def test_a_checkpoint_from_other_networks_is_refused(source_folder: Path, tmp_path: Path) -> None:
    folder, private = tmp_path / "folder", tmp_path / "private"
    shutil.copytree(source_folder, folder)
    run(tmp_path / "out", private, init=str(folder), kimg=0.004)
    assert (private / CHECKPOINT).exists()
    other = Discriminator(**read_config(folder)["discriminator"])
    save_weights(folder / "discriminator.safetensors", other)
    with pytest.raises(
        StyleGAN2Error, match=r"belongs to another training.*\n  - init_sha256: the checkpoint has"
    ):
        run(tmp_path / "out", private, init=str(folder), kimg=0.004)


def test_a_checkpoint_from_before_fine_tuning_names_what_it_lacks(
    source_folder: Path, tmp_path: Path
) -> None:
    run(tmp_path / "out", tmp_path, init=str(source_folder), kimg=0.004)
    tensors, state = load_checkpoint(tmp_path / CHECKPOINT)
    del state["init_sha256"], state["kid"], state["options"]["grow"]
    save_checkpoint(tmp_path / CHECKPOINT, tensors, state)
    with pytest.raises(StyleGAN2Error, match="grow: the checkpoint has None, asked for False") as caught:
        run(tmp_path / "out", tmp_path, init=str(source_folder), kimg=0.004)
    assert "init_sha256: the checkpoint has None" in str(caught.value)


# ----------------------------------------------------------------------------------------------------------
# Growing
# ----------------------------------------------------------------------------------------------------------


def test_the_first_picture_of_a_grown_generator_is_the_smaller_one_enlarged(
    source_folder: Path, tmp_path: Path
) -> None:
    grown = run(tmp_path / "grown", init=str(source_folder), grow=True, size=32, kimg=0.004)
    smaller = load_generator(source_folder, CPU)
    z = torch.randn([4, 5], generator=torch.Generator().manual_seed(derive_seed(1, Stream.SAMPLE_GRID)))
    small = generate(smaller, z)
    assert small.std() > 0.1
    enlarged = to_uint8(upsample2d(small, smaller.synthesis.b16.resample_filter))
    with Image.open(grown / "samples" / "generated_000000000.png") as file:
        found = np.asarray(file)
    assert np.array_equal(found, image_grid(enlarged.permute(0, 2, 3, 1).numpy(), 2))
    config = read_config(grown)
    assert config["generator"]["img_resolution"] == config["discriminator"]["img_resolution"] == 32
    moved = read_tensors(grown / "generator_raw.safetensors")["synthesis.b32.torgb.weight"]
    assert moved.abs().max() > 0  # starting at 0 does not keep them from learning


@pytest.mark.parametrize("architecture", ["resnet", "orig"])
def test_architectures_that_draw_once_keep_an_image_layer(architecture: str, tmp_path: Path) -> None:
    source = SourceNetworks.load(str(write_folder(tmp_path, g_architecture=architecture)))
    _, average, _ = networks_from(source, resolved_from(source, resolution=32, grow=True))
    assert generate(average, torch.randn(2, 5)).std() > 0


@pytest.mark.parametrize("architecture", ["resnet", "skip", "orig"])
def test_grown_networks_share_the_weights_of_lower_resolutions(architecture: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, d_architecture=architecture)
    source = SourceNetworks.load(str(folder))
    networks = networks_from(source, resolved_from(source, resolution=32, grow=True))
    for name, network in zip(("generator_raw", "generator", "discriminator"), networks, strict=True):
        state, smaller = network.state_dict(), read_tensors(folder / f"{name}.safetensors")
        shared = state.keys() & smaller.keys()
        assert all(torch.equal(state[key], smaller[key]) for key in shared)
        assert all(".b32." in f".{key}" for key in state.keys() - shared)
        lost = {key.rpartition(".")[0] for key in smaller.keys() - shared}
        reads = name == "discriminator" and architecture != "skip"
        assert lost == ({"b16.fromrgb"} if reads else set())


def test_growing_by_two_doublings_is_possible_and_by_none_changes_nothing(source: SourceNetworks) -> None:
    _, average, _ = networks_from(source, resolved_from(source, resolution=64, grow=True))
    assert generate(average, torch.randn(1, 5)).shape == (1, 3, 64, 64)
    _, same, _ = networks_from(source, resolved_from(source, grow=True))
    assert same_tensors(same, read_tensors(source.folder / "generator.safetensors"))


def test_a_file_of_weights_that_lacks_a_tensor_does_not_grow(source_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(source_folder, folder)
    narrow = Discriminator(**{**read_config(folder)["discriminator"], "img_resolution": 8})
    save_weights(folder / "discriminator.safetensors", narrow)
    source = SourceNetworks.load(str(folder))
    with pytest.raises(StyleGAN2Error, match=r"b16\.conv0\.weight: missing in the file"):
        networks_from(source, resolved_from(source, resolution=32, grow=True))
