import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stylegan2.export
from stylegan2 import ops
from stylegan2.errors import StyleGAN2Error
from stylegan2.export import export_onnx, export_safetensors
from stylegan2.network_folder import read_config
from stylegan2.networks.generator import Generator
from stylegan2.sampling import class_label, generate, load_generator

KWARGS: dict[str, Any] = {
    "z_dim": 12,
    "c_dim": 0,
    "w_dim": 16,
    "img_resolution": 16,
    "img_channels": 3,
    "mapping_kwargs": {"num_layers": 2},
    "synthesis_kwargs": {"channel_base": 128, "channel_max": 8},
}
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in stylegan2.export.PACKAGES),
    reason="the packages of vesselforge[export] are not installed",
)


def small_generator(**changes: Any) -> Generator:
    torch.manual_seed(0)
    generator = Generator(**{**KWARGS, **changes}).eval().requires_grad_(False)
    generator.mapping.w_avg.normal_()
    for name, value in generator.named_parameters():
        if name.endswith("noise_strength"):
            value.fill_(0.3)
    return generator


def run(path: Path, **inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,) = session.run(None, inputs)
    return np.asarray(image)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Generator, Path, float]]:
    path = tmp_path_factory.mktemp("onnx") / "new" / "generator.onnx"
    generator = small_generator()
    yield generator, path, export_onnx(generator, path, 0.7, truncation_cutoff=4)


@needs_onnx
@pytest.mark.parametrize("count", [1, 2, 5])
def test_onnx_draws_what_torch_draws(exported: tuple[Generator, Path, float], count: int) -> None:
    generator, path, difference = exported
    z = torch.randn(count, 12, generator=torch.Generator().manual_seed(9))
    expected = generate(generator, z, 0.7, truncation_cutoff=4).numpy()
    found = run(path, z=z.numpy())
    assert found.shape == (count, 3, 16, 16)
    assert np.abs(found - expected).max() < 1e-4
    assert difference < 1e-4
    # ψ, its cutoff and the noise are those that were asked for.
    for other in (
        generate(generator, z, 1.0),
        generate(generator, z, 0.7),
        generate(generator, z, 0.7, truncation_cutoff=4, noise_mode="none"),
    ):
        assert np.abs(found - other.numpy()).max() > 1e-2


@needs_onnx
def test_onnx_says_what_it_is(exported: tuple[Generator, Path, float]) -> None:
    import onnx

    model = onnx.load(exported[1])
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["truncation_psi"] == "0.7" and about["truncation_cutoff"] == "4"
    assert [value.name for value in model.graph.input] == ["z"]
    assert [value.name for value in model.graph.output] == ["image"]
    (entry,) = model.opset_import
    assert entry.version == 18
    assert (
        str(Path(torch.__file__).parent).encode() not in exported[1].read_bytes()
    )  # no paths of this machine
    assert [file.name for file in exported[1].parent.iterdir()] == ["generator.onnx"]


@needs_onnx
def test_the_generator_is_left_alone(exported: tuple[Generator, Path, float]) -> None:
    before, after = small_generator().state_dict(), exported[0].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not exported[0].training


@needs_onnx
def test_a_network_with_classes_has_a_second_input(tmp_path: Path) -> None:
    generator = small_generator(
        c_dim=3, synthesis_kwargs={**KWARGS["synthesis_kwargs"], "architecture": "resnet"}
    )
    with ops.use("cuda"):  # asked for, though the comparison lies on the CPU
        export_onnx(generator, tmp_path / "g.onnx", 1.0)
    z = torch.randn(2, 12, generator=torch.Generator().manual_seed(9))
    label = class_label(generator, 2)
    assert label is not None
    expected = generate(generator, z, label=label).numpy()
    assert (
        np.abs(run(tmp_path / "g.onnx", z=z.numpy(), c=label.expand(2, -1).numpy()) - expected).max() < 1e-4
    )


@needs_onnx
@pytest.mark.parametrize("difference", [0.002, math.nan, math.inf])
def test_a_graph_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    monkeypatch.setattr(stylegan2.export, "_encode", lambda frozen: b"graph")
    monkeypatch.setattr(stylegan2.export, "_difference", lambda encoded, frozen: difference)
    with pytest.raises(StyleGAN2Error, match=r"differ from torch's by .* at most 0\.001"):
        export_onnx(small_generator(), tmp_path / "g.onnx", 0.7)
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_the_comparison_sees_a_difference(exported: tuple[Generator, Path, float]) -> None:
    generator, path, _ = exported
    other = stylegan2.export._FrozenGenerator(generator, 0.7, 4).eval()
    other.generator.synthesis.b16.torgb.bias += 0.25
    assert stylegan2.export._difference(path.read_bytes(), other) == pytest.approx(0.25, abs=1e-4)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stylegan2.export, "PACKAGES", ("json", "absent_one", "absent_two"))
    with pytest.raises(StyleGAN2Error, match=r"absent_one, absent_two; pip install 'vesselforge\[export\]'"):
        export_onnx(small_generator(), tmp_path / "g.onnx", 0.7)


@needs_onnx
def test_wrong_truncation_is_named(tmp_path: Path) -> None:
    with pytest.raises(StyleGAN2Error, match="cutoff: got 9"):
        export_onnx(small_generator(), tmp_path / "g.onnx", 0.7, truncation_cutoff=9)


def test_safetensors_make_a_network_folder(tmp_path: Path) -> None:
    generator = small_generator()
    export_safetensors(generator, tmp_path / "out", {"seed": 3})
    again = load_generator(tmp_path / "out", torch.device("cpu"))
    z = torch.randn(2, 12)
    assert torch.equal(generate(again, z, 0.7), generate(generator, z, 0.7))
    assert read_config(tmp_path / "out")["seed"] == 3
