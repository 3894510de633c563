"""Make Triton's interpreter tell the truth about bfloat16.

It keeps bfloat16 as 16-bit integers. Left alone, it multiplies those integers in tl.dot, adds them in arithmetic, and
cuts float32 off where hardware rounds. Here products and casts are exact, and any other arithmetic on bfloat16 raises.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

BITWISE = {"where", "logical_and", "logical_or"}  # moves bits, does not read them as numbers


def is_bf16(handle: TensorHandle) -> bool:
    """Whether the elements are bfloat16 (and not pointers to it)."""
    return handle.dtype.scalar == tl.bfloat16


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as integers -> float32."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 as integers, rounded to nearest, ties to even."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    tie_to_even = (bits >> np.uint32(16)) & np.uint32(1)
    with np.errstate(over="ignore"):
        rounded = ((bits + np.uint32(0x7FFF) + tie_to_even) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def numbers(handle: TensorHandle) -> np.ndarray:
    """Elements as float32 where they are narrower floats."""
    if is_bf16(handle):
        return widen(handle.data)
    return handle.data.astype(np.float32) if handle.dtype.scalar == tl.float16 else handle.data


def dot(builder: Any, a: TensorHandle, b: TensorHandle, acc: TensorHandle, *_: object) -> TensorHandle:
    """Product of the numbers, summed in the accumulator's dtype (every input_precision is exact here)."""
    product = np.matmul(numbers(a), numbers(b)).astype(acc.data.dtype, copy=False)
    return TensorHandle(product + acc.data, acc.dtype.scalar)


_cast = InterpreterBuilder.cast_impl


def cast(builder: Any, source: TensorHandle, target: Any) -> TensorHandle:
    """Casts to and from bfloat16 go through float32."""
    if source.dtype.scalar == target.scalar:
        return source
    if is_bf16(source):
        source = TensorHandle(widen(source.data), tl.float32)
    if target.scalar == tl.bfloat16:
        return TensorHandle(narrow(source.data), tl.bfloat16)
    return source if target.scalar == source.dtype.scalar else _cast(builder, source, target)


def guarded(name: str) -> Any:
    """The builder's method, refusing to read bfloat16 bits as integers."""
    original = getattr(InterpreterBuilder, name)

    def method(builder: Any, *args: Any) -> Any:
        *operands, operation = args
        if any(is_bf16(operand) for operand in operands) and getattr(operation, "__name__", "") not in BITWISE:
            raise NotImplementedError(f"{operation} on bfloat16: write .to(tl.float32) before it")
        return original(builder, *args)

    return method


def install() -> None:
    """Patch the interpreter of this process."""
    assert interpreter.InterpreterBuilder is InterpreterBuilder
    InterpreterBuilder.create_dot = dot
    InterpreterBuilder.cast_impl = cast
    for name in ("fp_ext", "fp_trunc", "si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui"):
        setattr(InterpreterBuilder, f"create_{name}", cast)
    for name in ("binary_op", "unary_op"):
        setattr(InterpreterBuilder, name, guarded(name))
