"""The checkpoint file, and what becomes of one that does not fit."""

import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from stylegan2.checkpoint import (
    load_checkpoint,
    network_tensors,
    optimizer_tensors,
    restore_network,
    restore_optimizer,
    save_checkpoint,
)
from stylegan2.errors import StyleGAN2Error


def trained(seed: int) -> tuple[nn.Linear, torch.optim.Adam]:
    torch.manual_seed(seed)
    network = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    step(network, optimizer)
    return network, optimizer


def step(network: nn.Linear, optimizer: torch.optim.Adam) -> None:
    optimizer.zero_grad()
    network(torch.tensor([[1.0, -2.0, 3.0]])).square().sum().backward()
    optimizer.step()


@pytest.fixture
def saved() -> dict[str, Tensor]:
    _, optimizer = trained(0)
    return {name: value.clone() for name, value in optimizer_tensors("adam", optimizer).items()}


def test_what_was_saved_goes_on_alike(tmp_path: Path) -> None:
    network, optimizer = trained(0)
    path = tmp_path / "new" / "state.safetensors"
    tensors = {**network_tensors("net", network), **optimizer_tensors("adam", optimizer)}
    save_checkpoint(path, tensors, {"p": 0.1 + 0.2, "rows": [None, 3]})
    step(network, optimizer)
    read, state = load_checkpoint(path)
    assert state == {"p": 0.1 + 0.2, "rows": [None, 3]}
    other = nn.Linear(3, 2)
    other_optimizer = torch.optim.Adam(other.parameters(), lr=0.1)  # has not taken a step yet
    restore_network("net", other, read)
    restore_optimizer("adam", other_optimizer, read)
    step(other, other_optimizer)
    assert torch.equal(other.weight, network.weight)
    assert torch.equal(other.bias, network.bias)


def test_views_and_transposed_tensors_are_stored_by_value(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    save_checkpoint(tmp_path / "state", {"transposed": base.T, "scalar": base[1, 2]}, {})
    tensors, _ = load_checkpoint(tmp_path / "state")
    assert torch.equal(tensors["transposed"], base.T)
    assert torch.equal(tensors["scalar"], torch.tensor(5.0))


def test_an_empty_optimiser_state_is_refused() -> None:
    _, optimizer = trained(0)
    with pytest.raises(StyleGAN2Error) as caught:
        restore_optimizer("adam", optimizer, {})
    expected = [f"{index}/{name}: missing" for index in (0, 1) for name in ("exp_avg", "exp_avg_sq", "step")]
    assert re.findall(r"\S+: missing", str(caught.value)) == expected


def test_every_misfit_of_an_optimiser_state_is_named(saved: dict[str, Tensor]) -> None:
    _, optimizer = trained(1)
    before = {name: value.clone() for name, value in optimizer_tensors("adam", optimizer).items()}
    del saved["adam/1/exp_avg"]
    saved["adam/0/exp_avg_sq"] = torch.zeros(3, 2)
    saved["adam/2/step"] = torch.tensor(1.0)
    with pytest.raises(StyleGAN2Error) as caught:
        restore_optimizer("adam", optimizer, saved)
    assert str(caught.value).splitlines() == [
        "the checkpoint's adam does not fit the network:",
        "  - 0/exp_avg_sq: got [3, 2], expected [2, 3]",
        "  - 1/exp_avg: missing in the file",
        "  - 2/step: unknown to the optimiser",
    ]
    after = optimizer_tensors("adam", optimizer)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}))
    with pytest.raises(StyleGAN2Error, match="is not a checkpoint"):
        load_checkpoint(path)
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}, metadata={"state": '{"format": 0}'}))
    with pytest.raises(StyleGAN2Error, match="another version"):
        load_checkpoint(path)
