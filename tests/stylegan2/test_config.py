"""Training options and their resolution."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from stylegan2.config import FULL_CHANNEL_BASE, TrainingOptions, base_configuration, resolve

COLUMNS = {
    "kimg": "kimg",
    "mb": "batch",
    "mbstd": "mbstd_group",
    "fmaps": "fmaps",
    "lrate": "lr",
    "gamma": "gamma",
    "ema": "ema_kimg",
    "ramp": "ema_rampup",
    "map": "mapping_layers",
}


def test_auto_follows_the_resolution() -> None:
    resolved = resolve(TrainingOptions(resolution=128))
    assert (resolved.batch, resolved.mbstd_group, resolved.channel_base) == (32, 4, FULL_CHANNEL_BASE // 2)
    assert resolved.gamma == pytest.approx(0.1024)
    assert (resolved.ada_kimg, resolved.ema_rampup) == (500, 0.05)


def test_a_person_s_values_win_and_derived_ones_stay() -> None:
    resolved = resolve(TrainingOptions(resolution=128, batch=8, fmaps=1 / 32, ema_rampup=None, w_dim=128))
    assert (resolved.batch, resolved.channel_base, resolved.w_dim) == (8, 1024, 128)
    assert resolved.ema_rampup is None
    assert resolved.gamma == pytest.approx(0.1024)


def test_fine_tuning_adapts_faster_and_has_no_ramp_up() -> None:
    resolved = resolve(TrainingOptions(resolution=128, init="models/other"))
    assert (resolved.ada_kimg, resolved.ema_rampup) == (100, None)


def test_cifar_switches_off_what_its_paper_does() -> None:
    resolved = resolve(TrainingOptions(resolution=32, cfg="cifar"))
    assert (resolved.pl_weight, resolved.style_mixing_prob, resolved.d_architecture) == (0, 0, "orig")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"resolution": 100}, "resolution"),
        ({"resolution": 64, "batchsize": 8}, "batchsize"),
        ({"resolution": 64, "gamma": -1}, "gamma"),
        ({"resolution": 64, "batch": 6}, "mbstd_group"),
        ({"resolution": 64, "aug": "fixed"}, "p: aug"),
        ({"resolution": 64, "aug": "noaug", "p": 0.5}, "p: got 0.5"),
        ({"resolution": 64, "augpipe": "bcg"}, "augpipe"),
        ({"resolution": 64, "fmaps": 0.0001}, "fmaps"),
        ({"resolution": 64, "kimg": float("nan")}, "kimg"),
        ({"resolution": 64, "batch": 1, "mbstd_group": 1}, "pl_batch_shrink"),
        ({}, "resolution"),
    ],
)
def test_an_error_names_the_field(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        TrainingOptions.model_validate(values)


@pytest.mark.shared
def test_table_of_the_reference(stylegan2_reference: Any) -> None:
    path = stylegan2_reference.folder / "training_dynamics.json"
    table = json.loads(path.read_text(encoding="utf-8"))["config_table"]
    rows = [(name, 256, row["ref_gpus"], row) for name, row in table["fixed"].items()]
    rows += [("auto", row["res"], row["gpus"], row) for row in table["auto_rows"]]
    for name, resolution, gpus, row in rows:
        found = base_configuration(name, resolution, gpus)  # type: ignore[arg-type]
        for column, field in COLUMNS.items():
            value, expected = getattr(found, field), row[column]
            close = value == expected or value == pytest.approx(expected, rel=1e-9)
            assert close, (name, column, value, expected)


def test_no_option_but_kimg_depends_on_the_length() -> None:
    """Otherwise a training could not go on, and must not: the error would name the option."""
    for cfg in ("auto", "stylegan2", "cifar"):
        for init in (None, "x"):
            short, long = (
                resolve(TrainingOptions(resolution=64, cfg=cfg, init=init, kimg=kimg)).model_dump()
                for kimg in (1.0, 1000.0)
            )
            assert {name for name in short if short[name] != long[name]} == {"kimg"}
