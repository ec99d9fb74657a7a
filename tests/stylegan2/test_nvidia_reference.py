"""Import of the NVIDIA-format fixtures: arguments, states and pictures equal those of the original."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan2.errors import StyleGAN2Error
from stylegan2.networks.generator import Generator
from stylegan2.nvidia import ImportedNetworks, read_nvidia_pickle, write_imported
from tests.stylegan2.nvidia_format import load_networks

REFERENCES = {
    "nvidia_format_stripped.pkl": "nvidia_format_reference.safetensors",
    "nvidia_format_stripped_torch17style.pkl": "nvidia_format_torch17style_reference.safetensors",
    "nvidia_format_stripped_torch17style_proto3.pkl": "nvidia_format_torch17style_reference.safetensors",
}


@pytest.fixture(scope="module", params=list(REFERENCES))
def imported_fixture(
    request: pytest.FixtureRequest, stylegan2_reference: Any
) -> tuple[str, ImportedNetworks]:
    return request.param, read_nvidia_pickle(stylegan2_reference.folder / request.param)


def test_fixtures_hold_the_arguments_of_the_index(
    imported_fixture: tuple[str, ImportedNetworks], stylegan2_reference: Any
) -> None:
    file, imported = imported_fixture
    expected = stylegan2_reference.entry(REFERENCES[file])["expected_init_kwargs"]
    assert imported.generator.init_kwargs == imported.generator_raw.init_kwargs
    assert imported.generator.init_kwargs.items() >= expected["G"].items()
    assert imported.discriminator.init_kwargs.items() >= expected["D"].items()
    assert imported.training_set_kwargs == expected["training_set_kwargs"]
    assert imported.augment_p is None
    assert imported.file_name == file
    assert imported.sha256 == stylegan2_reference.entry(file)["sha256"]


def test_fixtures_hold_the_states_of_the_index(
    imported_fixture: tuple[str, ImportedNetworks], stylegan2_reference: Any
) -> None:
    file, imported = imported_fixture
    entry = stylegan2_reference.entry(REFERENCES[file])
    names = {"G_ema": imported.generator, "G": imported.generator_raw, "D": imported.discriminator}
    got = {
        f"{name}/{key}": value for name, network in names.items() for key, value in network.tensors.items()
    }
    if "state_sha256" in entry:
        hashes = {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in got.items()}
        assert hashes == {key: value["sha256"] for key, value in entry["state_sha256"].items()}
    else:
        tensors = stylegan2_reference.tensors(REFERENCES[file])
        assert got.keys() == {key for key in tensors if not key.startswith("probe/")}
        assert all(torch.equal(value, tensors[key]) for key, value in got.items())


def test_networks_of_fixtures_draw_the_reference_pictures(
    imported_fixture: tuple[str, ImportedNetworks],
    stylegan2_reference: Any,
    assert_close_to_reference: Callable[..., None],
    tmp_path: Path,
) -> None:
    file, imported = imported_fixture
    tolerance = stylegan2_reference.entry(REFERENCES[file])["tolerance"]["probe_rel_max"]
    tensors = stylegan2_reference.tensors(REFERENCES[file])
    probes = {key.removeprefix("probe/"): value for key, value in tensors.items() if key.startswith("probe/")}
    write_imported(imported, tmp_path / "networks")
    g_ema, g, d = load_networks(tmp_path / "networks")
    draw = functools.partial(Generator.forward, z=probes.pop("z"), noise_mode="const")
    got = {
        "G_ema_img_psi1_const": lambda: draw(g_ema),
        "G_ema_img_psi0.7_const": lambda: draw(g_ema, truncation_psi=0.7),
        "G_img_psi1_const": lambda: draw(g),
        "G_img_psi0.7_const": lambda: draw(g, truncation_psi=0.7),
        "D_logits_on_G_ema_img": lambda: d(draw(g_ema)),
    }
    assert {"G_ema_img_psi1_const", "D_logits_on_G_ema_img"} <= probes.keys()
    with torch.no_grad():
        for name, expected in probes.items():
            assert_close_to_reference(got[name](), expected, tolerance, name)


@pytest.mark.parametrize("fraction", [0.0001, 0.01, 0.3, 0.5, 0.9, 0.999, 0.999999])
def test_truncated_fixture(stylegan2_reference: Any, fraction: float, tmp_path: Path) -> None:
    data = (stylegan2_reference.folder / "nvidia_format_stripped_torch17style.pkl").read_bytes()
    path = tmp_path / "net.pkl"
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(StyleGAN2Error, match=r"damaged.*fetch the file again"):
        read_nvidia_pickle(path)
