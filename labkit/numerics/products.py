"""Matrix products in a format that the processor has no kernel for: the arithmetic of a tensor core, emulated.

A tensor core multiplies 16-bit inputs exactly, adds the products in fp32, and rounds the sum once, to the output's
format (Micikevicius et al. 2018, arXiv:1710.03740, section 3.3). In tf32 it reads fp32 inputs, keeps 10 of their
mantissa bits, and gives fp32. On a CPU without such a kernel torch either falls back to a loop some ten times slower
than fp32 (fp16), or has nothing (tf32). Here the tensors keep their format and their bytes; only the products are
computed in fp32 from the same inputs, and rounded as the tensor core rounds them. A product of two fp16 or tf32 numbers
is exact in fp32, so that this differs from the hardware by nothing but the order of the fp32 additions.

Attention is one product with a softmax inside; fused kernels on a GPU keep the scores in fp32, and so does this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from labkit.numerics.rounding import round_nearest

KERNEL, EMULATED = "kernel", "emulated"
PRODUCTS = {
    "mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "mv", "addmv", "dot",
    "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_efficient_attention_backward",
}  # fmt: skip


def how(fmt: str, device: str) -> str:
    """How matrix products in `fmt` (fp32, tf32, bf16, fp16) are computed on `device`: by a "kernel", or "emulated"."""
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

    Args:
        fmt: "fp16" or "bf16": products of tensors in that format; "tf32": products of fp32 tensors.
    """

    def __init__(self, fmt: str):
        super().__init__()
        self.fmt = fmt
        self.dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}[fmt]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`; a matrix product in our format takes the way round."""
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ not in PRODUCTS or not self._ours(args):
            return func(*args, **kwargs)
        wide_args, wide_kwargs = tree_map(self._widen, (args, kwargs))
        out = func(*wide_args, **wide_kwargs)
        if func.overloadpacket.__name__ == "_scaled_dot_product_flash_attention_for_cpu":
            # The softmax's normalizers come second, and are fp32 in the real kernel too.
            return self._narrow(out[0]), *out[1:]
        return tree_map(self._narrow, out)

    def _ours(self, args: Any) -> bool:
        return any(isinstance(a, Tensor) and a.dtype == self.dtype for a in args)

    def _widen(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != self.dtype:
            return value
        return round_nearest(value, "tf32") if self.fmt == "tf32" else value.float()

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
