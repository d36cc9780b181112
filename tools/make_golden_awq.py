#!/usr/bin/env python3
"""Packs small weights with AutoAWQ's own code: the golden file of the AWQ reader and of the integer rounding.

    pip download --no-deps --no-binary :all: autoawq==0.2.9 && tar xzf autoawq-0.2.9.tar.gz
    python tools/make_golden_awq.py autoawq-0.2.9 tests/golden/awq/autoawq-0.2.9.safetensors

AutoAWQ (MIT licence) is no longer maintained and does not import beside today's transformers, so its packages are
entered without running their `__init__`; the functions that round, pack and unpack are taken as they are.
"""

from __future__ import annotations

import ast
import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

BITS, GROUP = 4, 128
SHAPES = {"wide": (32, 256), "narrow": (64, 128)}  # [out, in]; the packer wants a multiple of 32 outputs


def enter(root: Path) -> None:
    """Make AutoAWQ's modules importable by their names, without the `__init__` of their packages."""
    for name in ("awq", "awq.modules", "awq.modules.linear", "awq.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(root / name.replace(".", "/"))]
        sys.modules[name] = package
    if not hasattr(torch, "xpu"):
        raise SystemExit("needs a torch that has torch.xpu: AutoAWQ asks for it")


def pseudo_quantize(root: Path) -> Any:
    """`AwqQuantizer.pseudo_quantize_tensor`, cut out of its file: (self, weight) → (weight, scales, zeros)."""
    tree = ast.parse((root / "awq/quantize/quantizer.py").read_text())
    found = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "pseudo_quantize_tensor")
    namespace: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([found], []), "quantizer.py", "exec"), namespace)
    return namespace["pseudo_quantize_tensor"]


def weights(shape: tuple[int, int]) -> torch.Tensor:
    """Float16 weights [out, in] with a row of zeros, a row of one sign, outliers and very small rows."""
    generator = torch.Generator().manual_seed(2026)
    weight = torch.randn(shape, generator=generator) * 0.04
    weight[0] = 0
    weight[1] = weight[1].abs() + 0.01
    weight[2, ::37] *= 40
    weight[3] *= 1e-4
    return weight.half()


def main() -> None:
    """Round as AutoAWQ's `_apply_quant` does, pack, and keep what it unpacks to."""
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    enter(root)
    packer = importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM
    unpack = importlib.import_module("awq.utils.packing_utils").dequantize_gemm
    settings = types.SimpleNamespace(w_bit=BITS, group_size=GROUP, zero_point=True)
    stored: dict[str, torch.Tensor] = {}
    for name, shape in SHAPES.items():
        linear = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=torch.float16)
        linear.weight.data = weights(shape)
        stored[f"{name}.original"] = linear.weight.data.clone()
        rounded, scales, zeros = pseudo_quantize(root)(settings, linear.weight.data)
        stored[f"{name}.pseudo_quantized"] = linear.weight.data = rounded
        packed = packer.from_linear(linear, BITS, GROUP, False, scales.t().contiguous(), zeros.t().contiguous())
        stored |= {f"{name}.{part}": getattr(packed, part) for part in ("qweight", "qzeros", "scales")}
        stored[f"{name}.dequantized"] = unpack(packed.qweight, packed.qzeros, packed.scales, BITS, GROUP).t()
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"made by": "tools/make_golden_awq.py with AutoAWQ 0.2.9", "bits": str(BITS), "group_size": str(GROUP)}
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, out, about)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
