"""A GPU that is not there: tensors of the CPU that say they are on CUDA, and take note of who waits for them.

On a real one, reading a value, finding out how many there are of something, and copies that are not
asynchronous wait until all is done that was asked for before.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
# By the names of functions and methods of torch
READING = {
    *("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__"),
    *("equal", "allclose", "nonzero", "masked_select", "unique", "bincount"),
}


class OnGpu(Tensor):
    """A tensor that the pretended GPU holds."""


class PretendedGpu(TorchFunctionMode):
    """Inside its block there is a GPU. Tensors of both devices do not go together, as in real life.

    Attributes:
        waits: what the CPU waited for, by the name of the function.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(isinstance(tensor, OnGpu) for tensor in tensors)
        with torch._C.DisableTorchFunctionSubclass():
            if name == "__get__":  # of an attribute
                attribute = func.__self__.__name__
                if attribute in ("device", "is_cuda"):
                    return (GPU if on_gpu else CPU) if attribute == "device" else on_gpu
            if name in ("to", "cpu", "pin_memory"):
                return self._copy(name, args[0], list(args[1:]), kwargs)
            if name in ("__getitem__", "__setitem__"):
                self._index(name, args)
            elif on_gpu:
                plain = [t for t in tensors if not isinstance(t, OnGpu) and t.ndim > 0]
                assert not plain, f"{name}: tensors on two devices"
            if on_gpu and name in READING:
                self.waits.append(name)
            if torch.device(kwargs.get("device") or "cpu").type == "cuda":
                on_gpu, kwargs["device"] = True, CPU
                if name in ("tensor", "new_tensor", "as_tensor"):  # of numbers of Python's
                    self.waits.append(name)
            result = func(*args, **kwargs)
            return tree_map(_to_gpu, result) if on_gpu else result

    def _copy(self, name: str, x: Tensor, args: list[Any], kwargs: dict[str, Any]) -> Tensor:
        if name == "pin_memory":
            assert not isinstance(x, OnGpu)
            pinned = x.clone()
            pinned.is_pretended_pinned = True  # type: ignore[attr-defined]
            return pinned
        asynchronous = bool(kwargs.pop("non_blocking", False)) or True in args
        here = GPU if isinstance(x, OnGpu) else CPU
        devices = [a for a in [*args, kwargs.get("device")] if isinstance(a, (str, torch.device))]
        target = CPU if name == "cpu" else torch.device(devices[0]) if devices else here
        moved = x.as_subclass(Tensor)
        dtypes = [a for a in [*args, kwargs.get("dtype")] if isinstance(a, torch.dtype)]
        if dtypes:
            moved = moved.to(dtypes[0])
        if target.type != here.type:
            # To the CPU torch copies into pinned memory by itself when it need not wait.
            pinned = here.type == "cuda" or hasattr(x, "is_pretended_pinned")
            if not (asynchronous and pinned):
                self.waits.append(name)
            moved = moved.clone()
        return _to_gpu(moved) if target.type == "cuda" else moved

    def _index(self, name: str, args: Any) -> None:
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        for part in parts:
            if isinstance(part, Tensor) and isinstance(args[0], OnGpu):
                if part.dtype in (torch.bool, torch.uint8):
                    self.waits.append(f"{name} by truth")
                elif not isinstance(part, OnGpu):
                    self.waits.append(f"{name} from the CPU")


def _to_gpu(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, OnGpu):
        return value.as_subclass(OnGpu)
    return value


class PretendedStream:
    """Stands for `torch.cuda.current_stream(…)`: its events happen when they are waited for.

    Attributes:
        waited: how many events have been waited for.
    """

    def __init__(self) -> None:
        self.waited = 0

    def record_event(self) -> "PretendedStream":
        return self

    def synchronize(self) -> None:
        self.waited += 1


def pretended_gpu() -> Iterator[PretendedGpu]:
    """Of fixtures: the operations run as reference, which has nothing to compile."""
    from stylegan2 import ops

    with ops.use_reference(), PretendedGpu() as gpu:
        yield gpu
