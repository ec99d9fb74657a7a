import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from stylegan2.cli import main
from stylegan2.commands.parameters import SEEDS, NumberRanges, select_device
from stylegan2.errors import StyleGAN2Error
from stylegan2.images import image_grid
from stylegan2.network_folder import read_config, write_config
from stylegan2.networks.generator import Generator
from stylegan2.ops import allocation
from stylegan2.sampling import load_generator, sample_images, seeds_to_ws
from tests.stylegan2.small_networks import KWARGS, write_network

TRAINED = {"options": {"resolution": 16, "gamma": 0.5, "ema_rampup": None}, "images_seen": 4000}


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_network(tmp_path / "gan", TRAINED)


def run(*arguments: object, fails: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == fails, result.output
    assert "Traceback" not in result.output
    return result


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def images(network: Path, seeds: list[int], psi: float = 1.0, **options: Any) -> list[NDArray[np.uint8]]:
    return list(sample_images(load_generator(network, torch.device("cpu")), seeds, psi, **options))


# Number ranges


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("7", [7]),
        ("0-3,9", [0, 1, 2, 3, 9]),
        ("9,0-2", [9, 0, 1, 2]),
        (" 1 , 3 - 4 ", [1, 3, 4]),
        ("5-5", [5]),
        ("007", [7]),
        ("4294967295", [2**32 - 1]),
    ],
)
def test_ranges(text: str, numbers: list[int]) -> None:
    assert SEEDS.parse(text) == numbers


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, unique=True))
def test_lists_come_back_as_they_are(numbers: list[int]) -> None:
    assert SEEDS.parse(",".join(map(str, numbers))) == numbers


@given(st.integers(0, 10**6), st.integers(0, 300))
def test_both_ends_belong_to_a_range(first: int, more: int) -> None:
    assert SEEDS.parse(f"{first}-{first + more}") == list(range(first, first + more + 1))


@settings(deadline=None)
@given(st.text(alphabet="0123456789-, x", max_size=12))
def test_any_text_is_numbers_or_a_clear_error(text: str) -> None:
    try:
        numbers = NumberRanges("seeds", 10**5, 10**5).parse(text)
    except StyleGAN2Error as error:
        assert "expected" in str(error) or "did you mean" in str(error) or "more than once" in str(error)
    else:
        assert numbers and all(0 <= number <= 10**5 for number in numbers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("1,,2", "'' is empty"),
        ("1-", "'1-' is not a number"),
        ("-4", "'-4' is not a number"),
        ("1.5", "'1.5' is not"),
        ("5-3", "ends before it starts; did you mean 3-5?"),
        ("0-4294967295", "4294967296 seeds, expected at most 1000000"),
        ("4294967296", "out of range; expected 0 to 4294967295"),
        ("9" * 5000, "out of range"),
        ("3,1-5", "named more than once: 3"),
        ("٣", "is not a number"),
    ],
)
def test_wrong_ranges(text: str, message: str) -> None:
    with pytest.raises(StyleGAN2Error) as caught:
        SEEDS.parse(text)
    assert message in str(caught.value) and len(str(caught.value)) < 5200


def test_every_wrong_part_is_named() -> None:
    with pytest.raises(StyleGAN2Error) as caught:
        SEEDS.parse("1-,5-3,x")
    assert all(part in str(caught.value) for part in ("'1-'", "'5-3'", "'x'"))


def test_a_walk_may_return() -> None:
    assert NumberRanges("seeds", 9, 9, unique=False).parse("1,2,1") == [1, 2, 1]


# The group


def test_every_command_explains_itself_with_an_example() -> None:
    result = run("--help")
    for name, command in main.commands.items():
        assert name in result.output
        text = run(name, "--help").output
        if name in ("generate", "mix", "interpolate", "project", "export", "import", "info"):
            assert f"Example:\n    stylegan2 {name} " in text
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)


def test_the_module_is_a_program_that_answers_without_torch() -> None:
    code = "import sys, stylegan2.cli as c; c.main(['generate', '--help'], standalone_mode=False); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    command = [sys.executable, "-m", "stylegan2", "--help"]
    assert "Usage: stylegan2 " in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cuda:９"])
def test_unknown_devices_are_named(name: str) -> None:
    with pytest.raises(StyleGAN2Error, match="expected auto, cpu, mps, cuda"):
        select_device(name)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StyleGAN2Error, match="torch sees no CUDA devices"):
        select_device("cuda")
    assert select_device("auto") == torch.device("cpu")


def test_on_the_processor_freed_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(allocation, "keep_freed_memory", lambda: calls.append(True))
    select_device("cpu")
    with pytest.raises(StyleGAN2Error):
        select_device("gpu")
    assert len(calls) == 1


# generate


def test_generate_writes_the_images_of_the_seeds(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("generate", network, "--seeds", "0-8,77", "--trunc", 0.7, "--grid", "grid.png", "-o", out)
    seeds = [*range(9), 77]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["grid.png", *(f"seed{seed:04d}.png" for seed in seeds)]
    )
    expected = images(network, seeds, 0.7)
    for seed, image in zip(seeds, expected, strict=True):
        assert np.array_equal(pixels(out / f"seed{seed:04d}.png"), image)
    assert np.array_equal(pixels(out / "grid.png"), image_grid(np.stack(expected), 3))


def test_generate_passes_every_option_on(tmp_path: Path) -> None:
    network = write_network(tmp_path / "gan", c_dim=2, img_channels=1)
    options = ["--class", 1, "--cutoff", 2, "--noise-mode", "random", "--trunc", 0.5, "--columns", 2]
    run("generate", network, "--seeds", "4,3", *options, "--grid", "all.PNG", "-o", tmp_path / "out")
    expected = images(network, [4, 3], 0.5, class_index=1, truncation_cutoff=2, noise_mode="random")
    for seed, image in zip([4, 3], expected, strict=True):
        assert np.array_equal(pixels(tmp_path / f"out/seed{seed:04d}.png"), image[:, :, 0])
    assert pixels(tmp_path / "out/all.PNG").shape == (16, 32)


def test_a_folder_in_use_is_left_alone(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("generate", network, "--seeds", "1", "-o", out)
    first = pixels(out / "seed0001.png")
    arguments = ("generate", network, "--seeds", "1-2", "--trunc", 0.2, "-o", out)
    assert "out is not empty" in run(*arguments, fails=1).output
    assert np.array_equal(pixels(out / "seed0001.png"), first)
    run(*arguments, "--overwrite")
    assert not np.array_equal(pixels(out / "seed0001.png"), first)


def test_every_problem_is_named_at_once(network: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    options = ["--trunc", "nan", "--cutoff", 99, "--class", 0, "--grid", "a/b.png"]
    result = run("generate", network, "--seeds", "1", *options, "-o", tmp_path / "out", fails=1)
    for part in ("5 problems", "is a file", "truncation ψ", "cutoff: got 99", "class: got 0", "grid: got"):
        assert part in result.output


def test_a_missing_network_is_named_among_the_others(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    absent = tmp_path / "absent"
    result = run("generate", absent, "--seeds", "1", "--device", "tpu", "-o", tmp_path / "out", fails=1)
    for part in ("3 problems", "is a file", "device: got 'tpu'", "config.json is missing"):
        assert part in result.output


def test_a_class_is_needed_where_there_are_classes(tmp_path: Path) -> None:
    network = write_network(tmp_path / "gan", c_dim=2)
    for arguments in (
        ("generate", network, "--seeds", "1", "-o", tmp_path / "out"),
        ("mix", network, "--rows", "1", "--cols", "2", "-o", tmp_path / "out"),
        ("interpolate", network, "--seeds", "1,2", "-o", tmp_path / "out.gif"),
    ):
        assert (
            "class: got none, expected one of this network's classes, 0 to 1"
            in run(*arguments, fails=1).output
        )
    assert not (tmp_path / "out").exists()


def test_bad_seeds_are_a_usage_error(network: Path, tmp_path: Path) -> None:
    result = run("generate", network, "--seeds", "5-3", "-o", tmp_path / "out", fails=2)
    assert "Invalid value for '--seeds'" in result.output and "did you mean 3-5?" in result.output


def test_a_grid_that_would_not_fit_into_memory(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylegan2.commands.parameters._MAX_GRID_BYTES", 16 * 16 * 3 * 4)
    arguments = ("generate", network, "--seeds", "0-4", "-o", tmp_path / "out")
    assert "expected at most 4" in run(*arguments, "--grid", "grid.png", fails=1).output
    run(*arguments)


def test_a_folder_that_cannot_be_written(network: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("generate", network, "--seeds", "1", "-o", tmp_path / "file" / "out", fails=1)
    assert "Error: " in result.stderr and "Not a directory" in result.stderr


# mix


def test_mix_writes_pairs_and_grid(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("mix", network, "--rows", "1-2", "--cols", "5,3,9", "--styles", "0-5", "--trunc", 0.7, "-o", out)
    pairs = [f"{row:04d}-{column:04d}.png" for row in (1, 2) for column in (5, 3, 9)]
    assert sorted(path.name for path in out.iterdir()) == sorted([*pairs, "grid.png"])
    # With every layer from the column, a pair is the column's image, wherever it stands.
    first, second, *columns = images(network, [1, 2, 5, 3, 9], 0.7)
    corner = np.full_like(first, 255)
    table = np.stack([corner, *columns, first, *columns, second, *columns])
    assert np.array_equal(pixels(out / "grid.png"), image_grid(table, 4))
    assert np.array_equal(pixels(out / "0002-0003.png"), columns[1])


def test_mix_names_layers_that_are_not_there(network: Path, tmp_path: Path) -> None:
    arguments = ("mix", network, "--rows", "1", "--cols", "2", "-o", tmp_path / "out")
    result = run(*arguments, "--styles", "4-7", "--class", 1, fails=1)
    assert "styles: got layer 6, 7, expected 0 to 5" in result.output and "no classes" in result.output
    assert "0, 1, 2 follow the column" in run(*arguments).output
    message = run(*arguments, "--styles", "0-99", "--overwrite", fails=1).output
    assert "styles: got layer 6, 7, 8, 9, 10 and 89 more, expected 0 to 5" in message


# interpolate


def test_interpolate_writes_a_gif(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "walk.gif"
    arguments = ("interpolate", network, "--seeds", "1,2,1", "--frames-per-segment", 4, "-o", out)
    assert "12 frames, 0.48 seconds" in run(*arguments).output
    with Image.open(out) as gif:
        assert gif.n_frames == 12
        first = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(first - images(network, [1])[0]).mean() < 6  # the palette's loss
    assert "walk.gif exists" in run(*arguments, fails=1).output
    run(*arguments, "--overwrite", "--space", "z")


def test_interpolate_names_every_problem(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "walk.avi"
    out.write_text("")
    result = run("interpolate", network, "--seeds", "1", "--cutoff", 9, "-o", out, fails=1)
    for part in ("4 problems", "exists", "ending in .gif or .mp4", "at least two", "cutoff"):
        assert part in result.output
    result = run("interpolate", network, "--seeds", "1-2", "--fps", 60, "-o", tmp_path / "x.gif", fails=1)
    assert "at most 50 in a GIF" in result.output


# project


def test_project_finds_an_image_of_the_network(network: Path, tmp_path: Path) -> None:
    run("generate", network, "--seeds", "3", "-o", tmp_path / "images")
    out = tmp_path / "out"
    weights = ("--perceptual-weight", 0, "--pixel-weight", 1)
    target = tmp_path / "images/seed0003.png"
    result = run("project", network, "--target", target, "--steps", 60, *weights, "-o", out)
    assert sorted(path.name for path in out.iterdir()) == [
        "history.csv",
        "projected.png",
        "projected_w.safetensors",
        "start.png",
        "target.png",
    ]
    wanted, start, found = (
        pixels(out / f"{name}.png").astype(int) for name in ("target", "start", "projected")
    )
    assert np.array_equal(wanted, pixels(target))
    assert np.square(found - wanted).mean() < np.square(start - wanted).mean() / 3
    assert load_file(out / "projected_w.safetensors")["ws"].shape == (1, 6, 16)
    assert len((out / "history.csv").read_text().splitlines()) == 61
    assert "mean squared pixel error" in result.output


def test_project_names_every_problem(network: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    weights = ("--perceptual-weight", 0, "--pixel-weight", 0, "--class", 1)
    target = ("--target", tmp_path / "absent.png")
    result = run("project", network, *target, *weights, "-o", tmp_path / "out", fails=1)
    for part in ("4 problems", "is a file", "both are 0", "no classes", "no such image"):
        assert part in result.output


def project_quickly(network: Path, tmp_path: Path, *options: object, out: str = "projected") -> Path:
    target = tmp_path / "target.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(target)
    weights = ("--perceptual-weight", 0, "--pixel-weight", 1)
    run("project", network, "--target", target, *weights, *options, "-o", tmp_path / out)
    return tmp_path / out


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_a_search_can_be_filmed(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    network = write_network(tmp_path / "gan", noise=0.2)
    plain = project_quickly(network, tmp_path, "--steps", 7)
    filmed = project_quickly(network, tmp_path, "--steps", 7, "--save-video", f"x.{suffix}", out="filmed")
    for path in plain.iterdir():
        assert (filmed / path.name).read_bytes() == path.read_bytes()
    if suffix == "gif":
        with Image.open(filmed / "x.gif") as gif:
            assert (gif.n_frames, gif.size) == (8, (32, 16))
            frame = np.asarray(gif.convert("RGB")).astype(int)
            gif.seek(7)
            last = np.asarray(gif.convert("RGB")).astype(int)
        target, start, found = (pixels(plain / f"{name}.png") for name in ("target", "start", "projected"))
        assert np.abs(frame - np.concatenate([target, start], axis=1)).mean() < 12  # the palette's loss
        assert np.abs(last - np.concatenate([target, found], axis=1)).mean() < 12
    else:
        assert (filmed / "x.mp4").stat().st_size > 0


def test_a_long_search_is_filmed_in_few_frames(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylegan2.commands.project._MOST_FRAMES", 3)
    out = project_quickly(network, tmp_path, "--steps", 8, "--save-video", "x.gif")
    with Image.open(out / "x.gif") as gif:
        assert gif.n_frames == 4  # before steps 0, 3 and 6, and the result


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.avi", "x.avi: expected a file name ending in .gif or .mp4"),
        ("a/x.gif", "got 'a/x.gif', expected the name of a file in OUT"),
    ],
)
def test_films_have_a_name_in_the_folder(name: str, message: str, network: Path, tmp_path: Path) -> None:
    arguments = ("--target", tmp_path / "absent.png", "--save-video", name, "-o", tmp_path / "out")
    result = run("project", network, *arguments, fails=1)
    assert f"save-video: {message}" in result.output and "2 problems" in result.output


# generate, from what was projected


@pytest.mark.parametrize("c_dim", [0, 2])
def test_what_was_projected_is_drawn_again(c_dim: int, tmp_path: Path) -> None:
    network = write_network(tmp_path / "gan", noise=0.3, c_dim=c_dim)
    label = ("--class", 1) if c_dim else ()
    found = project_quickly(network, tmp_path, "--steps", 4, "--per-layer", *label)
    command = ("generate", network, "--projected-w", found / "projected_w.safetensors")
    run(*command, "-o", tmp_path / "out", "--grid", "grid.png")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"proj00.png", "grid.png"}
    assert np.array_equal(pixels(tmp_path / "out/proj00.png"), pixels(found / "projected.png"))
    run(*command, "-o", tmp_path / "plain", "--noise-mode", "none")
    assert not np.array_equal(pixels(tmp_path / "plain/proj00.png"), pixels(found / "projected.png"))


def test_several_ws_without_noise_maps_take_the_networks_own(tmp_path: Path) -> None:
    network = write_network(tmp_path / "gan", noise=0.3)
    ws = seeds_to_ws(load_generator(network), [4, 9])
    save_file({"ws": ws}, tmp_path / "w.safetensors")
    run("generate", network, "--projected-w", tmp_path / "w.safetensors", "-o", tmp_path / "out")
    for index, image in enumerate(images(network, [4, 9])):
        drawn = pixels(tmp_path / f"out/proj{index:02d}.png").astype(int)
        assert np.abs(drawn - image).max() <= 1


def test_a_projected_w_excludes_what_decides_on_w(network: Path, tmp_path: Path) -> None:
    save_file({"ws": torch.zeros(1, 5, 16)}, tmp_path / "w.safetensors")
    options = (
        "--seeds",
        "1",
        "--trunc",
        1,
        "--cutoff",
        2,
        "--class",
        0,
        "--noise-mode",
        "random",
        "--batch",
        8,
    )
    command = ("generate", network, "--projected-w", tmp_path / "w.safetensors", "-o", tmp_path / "out")
    result = run(*command, *options, fails=1)
    for part in (
        "4 problems",
        "batch: what was projected is drawn one by one; leave --batch out",
        "projected-w: is w itself, which --seeds, --trunc, --cutoff, --class would decide on",
        "noise-mode: got random",
        "ws: got [1, 5, 16], expected [N, 6, 16]",
    ):
        assert part in result.output
    result = run("generate", network, "-o", tmp_path / "out", fails=1)
    assert "give one of --seeds and --projected-w" in result.output


def test_files_that_hold_no_projection_are_named(network: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    command = ("generate", network, "--projected-w", path, "-o", tmp_path / "out")
    assert "no such file; expected a projected_w.safetensors" in run(*command, fails=1).output
    path.write_bytes(b"text")
    assert "is not a usable safetensors file" in run(*command, fails=1).output
    noise = {"noise/b4.conv1.noise_const": torch.zeros(3, 3), "noise/other": torch.zeros(1)}
    save_file({"ws": torch.full((1, 6, 16), float("nan")), **noise}, path)
    output = run(*command, fails=1).output
    for part in (
        "does not fit this network",
        "ws: expected finite",
        "noise/other: is unknown to the network",
    ):
        assert part in output
    assert "noise_const: got [3, 3], expected [4, 4]" in output
    save_file({"w": torch.zeros(1)}, path)
    assert "ws: got none" in run(*command, fails=1).output


# export, info, import


def test_export_writes_a_network_folder(network: Path, tmp_path: Path) -> None:
    (network / "discriminator.safetensors").write_bytes(b"large")
    out = tmp_path / "out"
    run("export", network, "--format", "safetensors", "-o", out)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "generator.safetensors"]
    assert np.array_equal(images(out, [5], 0.7), images(network, [5], 0.7))
    assert "images_seen" in run("info", out).output


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="vesselforge[export] is absent")
def test_export_writes_onnx(tmp_path: Path) -> None:
    network = write_network(tmp_path / "gan", img_resolution=8)
    result = run("export", network, "-o", tmp_path / "out", "--trunc", 0.5)
    assert "ψ = 0.5, largest difference to torch" in result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generator.onnx",
        "generator.safetensors",
    ]


def test_export_names_missing_packages_and_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylegan2.export.PACKAGES", ("absent_one",))
    result = run("export", tmp_path / "absent", "-o", tmp_path / "out", fails=1)
    assert "2 problems" in result.output and "vesselforge[export]" in result.output
    assert not (tmp_path / "out").exists()


def test_info_shows_networks_and_training(network: Path) -> None:
    output = run("info", network).output
    lines = {
        line.split("  ")[1]: line.split("  ")[-1].strip() for line in output.splitlines() if "  " in line
    }
    generator = Generator(**KWARGS)
    count = sum(value.numel() for value in generator.parameters())
    assert lines["image"] == "16×16, 3 channels"
    assert lines["generator parameters"] == f"{count:,}"
    assert lines["discriminator.safetensors"] == "absent"
    assert lines["options.gamma"] == "0.5" and lines["images_seen"] == "4000"
    assert lines["options.ema_rampup"] == "none"


def test_info_of_a_network_that_is_not_square(tmp_path: Path) -> None:
    network = write_network(
        tmp_path / "gan", synthesis_kwargs={**KWARGS["synthesis_kwargs"], "base_grid": [3, 4]}
    )
    assert "16×12, 3 channels" in run("info", network).output


def test_info_shows_control_characters_instead_of_obeying_them(network: Path) -> None:
    config = read_config(network)
    options = {"a\x1b[31m": "\x1b]0;mine\x07", "lines": "one\ntwo\rthree", "list": ["\x1b[2J", "\u202e"]}
    write_config(network, {**config, "options": options})
    output = run("info", network).output
    lines = output.splitlines()
    assert all(line.isprintable() for line in lines)
    assert any(line.endswith(r"  \x1b]0;mine\x07") and r"options.a\x1b[31m" in line for line in lines)
    assert any(line.endswith(r"  one\ntwo\rthree") for line in lines)
    assert any(line.endswith(r"  ['\x1b[2J', '\u202e']") for line in lines)


def test_errors_show_control_characters_too(network: Path) -> None:
    save_file({"\x1b[2J": torch.zeros(1)}, network / "generator.safetensors")
    output = run("info", network, fails=1).output
    assert r"  - \x1b[2J: unknown to the network" in output.splitlines()
    assert "\x1b" not in output


def test_info_of_something_else(tmp_path: Path) -> None:
    assert "not the folder of a trained GAN" in run("info", tmp_path, fails=1).output


def test_import_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    result = run("import", tmp_path / "absent.pkl", "-o", tmp_path / "out", fails=1)
    assert "2 problems" in result.output and "no such file" in result.output


def test_import_refuses_what_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert run("import", tmp_path / "net.pkl", "-o", tmp_path / "out", fails=1).output.startswith("Error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.shared
def test_import_makes_a_folder_for_the_other_commands(shared_dir: Path, tmp_path: Path) -> None:
    pickle = shared_dir / "fixtures/stylegan2/nvidia_format_stripped.pkl"
    run("import", pickle, "-o", tmp_path / "gan")
    assert "layers" in run("info", tmp_path / "gan").output
    generator = load_generator(tmp_path / "gan", torch.device("cpu"))
    label = ["--class", 0] if generator.c_dim else []
    run("generate", tmp_path / "gan", "--seeds", "0-1", *label, "-o", tmp_path / "out")
    assert pixels(tmp_path / "out/seed0001.png").shape[0] == generator.img_resolution
