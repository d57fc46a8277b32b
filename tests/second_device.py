"""A device that stands in for a GPU where there is none: "second", whose tensors are computed on the CPU.

They refuse to meet tensors of the CPU wherever those of a GPU do. So what is left on the wrong device is noticed, and
what is not gives numbers that one can compare.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "second"
_COPIES = torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default
_INDEXED = torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default


class Elsewhere(torch.Tensor):
    """A tensor of the second device; `inner`, on the CPU, has its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        where = inner.size(), inner.stride(), inner.storage_offset()
        made = torch.Tensor._make_wrapper_subclass(cls, *where, dtype=inner.dtype, device=f"{NAME}:0")
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"{NAME}: {self.inner!r}"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else self.inner, spec)

    def tolist(self) -> list[Any]:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        known = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, Elsewhere)}
        # As on a GPU, numbers without an axis may come from the CPU, and so may indices and what is copied.
        here = any(isinstance(leaf, torch.Tensor) and not isinstance(leaf, Elsewhere) and leaf.dim() for leaf in leaves)
        may_mix = func in _COPIES or (func in _INDEXED and isinstance(args[0], Elsewhere))
        if (here and not may_mix) or any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise RuntimeError(f"{func}: expected everything on one device, but some is on the CPU")
        to_cpu = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map_only(Elsewhere, lambda each: each.inner, (args, kwargs))
        found = func(*args, **kwargs)
        if to_cpu or (func is torch.ops.aten.copy_.default and id(args[0]) not in known):
            return found
        return tree_map_only(
            torch.Tensor, lambda each: known[id(each)] if id(each) in known else Elsewhere(each), found
        )


def _empty(op: Any) -> Any:
    return lambda *args, **kwargs: Elsewhere(op(*args, **{**kwargs, "device": "cpu"}))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return Elsewhere.__torch_dispatch__(torch.ops.aten.copy_.default, (), (target, source))


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


# A thread of the device's own would still hold tensors when the interpreter ends, and bring it down.
torch.autograd.set_multithreading_enabled(False)
backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
KERNELS = torch.library.Library("aten", "IMPL")  # they are there as long as this is
KERNELS.impl("empty.memory_format", _empty(torch.ops.aten.empty.memory_format), "PrivateUse1")
KERNELS.impl("empty_strided", _empty(torch.ops.aten.empty_strided.default), "PrivateUse1")
KERNELS.impl("_copy_from", _copy_from, "PrivateUse1")
