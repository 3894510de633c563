"""Whether Triton's interpreter, which stands in for a GPU where TRITON_INTERPRET=1, knows what bfloat16 is.

As it comes, it keeps bfloat16 as 16-bit integers and multiplies those: losses of 1e19 without a word. Patched
interpreters are told by what they compute.
"""

import functools

import torch


@functools.cache
def _measured() -> bool:
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    builder = InterpreterBuilder()
    ones = TensorHandle(np.full((16, 16), 0x3F80, np.uint16), tl.bfloat16)
    product = builder.create_dot(ones, ones, TensorHandle(np.zeros((16, 16), np.float32), tl.float32), None, 0)
    third = TensorHandle(np.full((1,), 1 / 3, np.float32), tl.float32)
    rounded = builder.cast_impl(third, tl.bfloat16)  # 0x3EAAAAAB: up, where bits are not merely cut off
    return bool((product.data == 16.0).all()) and int(rounded.data[0]) == 0x3EAB


@torch.compiler.assume_constant_result  # a trace asks once and goes on
def bfloat16_is_exact() -> bool:
    """Does tl.dot multiply bfloat16 numbers, and a cast from float32 round?"""
    return _measured()
