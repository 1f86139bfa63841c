"""Matrix products in a format that the processor has no kernel for: the arithmetic of a tensor core, emulated.

A tensor core multiplies 16-bit inputs exactly, adds the products in fp32, and rounds the sum once, to the output's
format (Micikevicius et al. 2018, arXiv:1710.03740, section 3.3). In tf32 it reads fp32 inputs, keeps 10 of their
mantissa bits, and gives fp32. On a CPU without such a kernel torch either falls back to a loop some ten times slower
than fp32 (fp16), or has nothing (tf32). Here the tensors keep their format and their bytes; only the products are
computed in fp32 from the same inputs, and rounded as the tensor core rounds them. A product of two fp16 or tf32 numbers
is exact in fp32, so that this differs from the hardware by nothing but the order of the fp32 additions.

Attention is one product with a softmax inside; fused kernels on a GPU keep the scores in fp32, and so does this. They
round the softmax's output once more, before it is multiplied by the values; this does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from labkit.errors import UnknownNameError
from labkit.numerics.rounding import round_nearest

KERNEL, EMULATED = "kernel", "emulated"
FORMATS = ("fp32", "tf32", "bf16", "fp16")
# Operands of the products by their place among the arguments. A bias, a mask and the logarithms that attention keeps
# for its backward are no operands: the hardware adds them in fp32.
_BACKWARD = (0, 1, 2, 3)
OPERANDS: dict[str, tuple[int, ...]] = {
    "mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "dot": (0, 1),
    "addmm": (1, 2), "addbmm": (1, 2), "baddbmm": (1, 2), "addmv": (1, 2),
    "_scaled_dot_product_flash_attention_for_cpu": (0, 1, 2),
    "_scaled_dot_product_flash_attention_for_cpu_backward": _BACKWARD,
    "_scaled_dot_product_efficient_attention": (0, 1, 2),
    "_scaled_dot_product_efficient_attention_backward": _BACKWARD,
}  # fmt: skip


def how(fmt: str, device: str) -> str:
    """How matrix products in `fmt` (fp32, tf32, bf16, fp16) are computed on `device`: by a "kernel", or "emulated".

    Raises UnknownNameError for another format.
    """
    if fmt not in FORMATS:
        raise UnknownNameError.among("format of matrix products", fmt, FORMATS)
    if fmt == "fp32":
        return KERNEL
    if device != "cpu":
        from labkit.machine import Machine

        return EMULATED if Machine.here().dtypes.get(fmt) == "no" else KERNEL
    # Asked of the library that would run the kernel; torch has no public function for it.
    asked = {"bf16": "_is_mkldnn_bf16_supported", "fp16": "_is_mkldnn_fp16_supported"}.get(fmt)
    found = getattr(torch.ops.mkldnn, asked, None) if asked and torch.backends.mkldnn.is_available() else None
    return KERNEL if found is not None and found() else EMULATED


class EmulatedProducts(TorchDispatchMode):
    """While active, matrix products of 16-bit tensors (or of fp32 tensors, in tf32) are computed in fp32 and rounded.

    Products that write into a tensor that they are given (`out=`, `addmm_`) stay torch's own.

    Args:
        fmt: "fp16" or "bf16": products of tensors in that format; "tf32": products of fp32 tensors.
    """

    def __init__(self, fmt: str):
        super().__init__()
        self.dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}[fmt]
        self._widened = self._cut_operands if fmt == "tf32" else self._widen_all

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`; a matrix product in our format takes the way round."""
        kwargs = kwargs or {}
        # Other overloads than the default one write into `out`, or name the result's dtype.
        operands = OPERANDS.get(func.overloadpacket.__name__) if func._overloadname == "default" else None
        # Where torch would refuse arguments of unlike formats, it still does.
        if operands is None or any(a.dtype != self.dtype for a in args[: operands[-1] + 1]):
            return self._native(func, args, kwargs)
        args, kwargs = self._widened(operands, args, kwargs)
        out = func(*args, **kwargs)
        if "attention" in func.overloadpacket.__name__ and "backward" not in func.overloadpacket.__name__:
            # The softmax's normalizers come second, and are fp32 in the real kernel too.
            return self._narrow(out[0]), *out[1:]
        return tree_map(self._narrow, out)

    def _native(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Anything else, as torch does it; einsum, linear and the like are looked into for the products they make."""
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode they arrive here whole
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        return func(*args, **kwargs)

    def _cut_operands(self, operands: tuple[int, ...], args: Any, kwargs: Any) -> tuple[Any, Any]:
        cut = [round_nearest(a, "tf32") if place in operands else a for place, a in enumerate(args)]
        return cut, kwargs

    def _widen_all(self, operands: tuple[int, ...], args: Any, kwargs: Any) -> tuple[Any, Any]:
        return tree_map(self._wide, (args, kwargs))

    def _wide(self, value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype == self.dtype else value

    def _narrow(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value


@contextmanager
def products_in(fmt: str, device: str) -> Iterator[str]:
    """Compute matrix products in `fmt` on `device` inside the block; yields how: "kernel" or "emulated"."""
    chosen = how(fmt, device)
    if chosen == EMULATED:
        with EmulatedProducts(fmt):
            yield chosen
    elif device == "cuda" and fmt in ("fp32", "tf32"):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if fmt == "tf32" else "highest")
        try:
            yield chosen
        finally:
            torch.set_float32_matmul_precision(before)
    else:
        yield chosen
