"""Compile every Triton kernel for an H100 (sm_90), which needs no GPU, and print its name."""

import os

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from saekit.kernels import triton_adam, triton_ops

SIZES = {
    "_count_tiles": {"ROWS": triton_ops.TILE_ROWS, "COLUMNS": triton_ops.TILE_COLUMNS},
    "_fill_tiles": {"ROWS": triton_ops.TILE_ROWS, "COLUMNS": triton_ops.TILE_COLUMNS},
    "_sum_by_row": {"BLOCK": 1024, "ENTRIES": 8},
    "_sum_by_latent": {"WITH_DOTS": True, "LENGTH": triton_ops.SEGMENT, "BLOCK": 1024, "ENTRIES": 8},
    "_sum_partials": {"BLOCK": 1024},
    "_sum_ranges": {"INDIRECT": True, "ENTRIES": 128},
    "_row_statistics": {"HELD": True, "BLOCK": 1024},
    "_adam_rows": {"HELD": True, "BLOCK": 1024},
}
FLOATS = {"matrix", "floors", "values_of", "start", "out", "dense", "weights", "partials", "dots", "sums", "values"}
FLOATS |= {"gradient", "parameter", "along", "squares", "exp_avg", "exp_avg_sq", "factors"}
NUMBERS = {"beta1", "beta2", "eps"}
INTEGERS = {
    "n_rows", "n_columns", "n_row_tiles", "n_column_tiles", "capacity", "start_stride", "lowest", "highest", "d",
    "n_latents",
}  # fmt: skip

for name, kernel in {**vars(triton_ops), **vars(triton_adam)}.items():
    if isinstance(kernel, triton.JITFunction) and name.startswith("_"):
        sizes = SIZES[name]
        signature = {
            argument: "constexpr"
            if argument in sizes
            else "i32"
            if argument in INTEGERS
            else "fp32"
            if argument in NUMBERS
            else "*fp32"
            if argument in FLOATS
            else "*i32"
            for argument in kernel.arg_names
        }
        constants = {(kernel.arg_names.index(argument),): value for argument, value in sizes.items()}
        compiled = compile_kernel(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
        assert compiled.asm["cubin"]
        print(name)
