"""What runs where, told without running it."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from bigssl_kernels.contrastive.dense import single
from bigssl_kernels.dispatch import FAMILIES, choose_with_reason


def explain(fn: Callable[..., Tensor], *args: Any, **kw: Any) -> str:
    """Say which implementation `fn(*args, **kw)` would run, and why, without running it.

    Args:
        fn: one of the losses of this package.
        args, kw: what it would be called with.

    Returns:
        One line, for example ``nt_xent: torch (CPU tensors need TRITON_INTERPRET=1)``. "dense torch" where each row has
        one candidate only: no other implementation runs then, whichever is asked for.

    Raises:
        ValueError: `fn` is not a loss of this package, or `impl` is not an implementation.
        RuntimeError: the implementation asked for cannot run.
        TypeError: the arguments do not fit the signature.
    """
    name = getattr(fn, "__name__", str(fn))
    if name not in FAMILIES:
        raise ValueError(f"explain: {name!r} is not a loss of bigssl_kernels; known are {', '.join(sorted(FAMILIES))}")
    bound = inspect.signature(fn).bind(*args, **kw)
    bound.apply_defaults()
    tensors = list(bound.arguments.values())
    chosen, reason = choose_with_reason(name, FAMILIES[name], bound.arguments["impl"], tensors[0])
    if chosen != "reference" and single(name, bound.arguments.get("group"), *tensors):
        return f"{name}: dense torch (one candidate to pick: for any impl=)"
    return f"{name}: {chosen} ({reason})"
