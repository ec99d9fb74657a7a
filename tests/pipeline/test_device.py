import pytest
import torch

from pipeline.device import select_device
from pipeline.errors import UserError


@pytest.fixture(autouse=True)
def _settings_restored():
    threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(is_deterministic)


@pytest.mark.parametrize("name", ["gpu", "", "CPU", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "cuda:0\n", "xla"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    threads = torch.get_num_threads()
    with pytest.raises(UserError, match=r"is not known; expected auto, cpu, mps, cuda or cuda:N"):
        select_device(name, threads=threads + 1)
    assert torch.get_num_threads() == threads


def test_the_processor_computes_deterministically_on_as_many_threads_as_asked():
    assert select_device("cpu", threads=1) == torch.device("cpu")
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_without_a_device_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no CUDA device; use 'auto' or 'cpu'"):
        select_device(name, threads=1)
    assert select_device("auto", threads=1).type == "cpu"


@pytest.mark.parametrize("name", ["cuda:1", "cuda:99999999999999"])
def test_a_cuda_device_of_too_high_a_number_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=f"'{name}' is asked for, but torch sees 1 CUDA devices"):
        select_device(name, threads=1)
