"""Converts exported weights to half precision; refuses overflow and reports underflow."""

from collections.abc import Callable, Mapping
from typing import Any

from objtune_cli.errors import UsageError
from objtune_cli.store.refs import Ref

DTYPES = ("fp32", "fp16", "bf16")
"""Number formats of exported weights; stored adapters have fp32."""
MAX_VALUES = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}
MAX_RELATIVE_LOSS = 0.01
"""Relative loss of a tensor's norm above which a note is printed."""


def convert(
    ref: Ref, tensors: Mapping[str, Any], dtype: str, note: Callable[[str], None] = lambda text: None
) -> Mapping[str, Any]:
    """Convert finite weights to a number format; bf16 is returned as uint16, because numpy has no bfloat16.

    Raises:
        UsageError: A value is too large for the format.
    """
    import numpy as np

    if dtype == "fp32":
        return tensors
    converted: dict[str, Any] = {}
    small = []
    for name, value in tensors.items():
        whole = _to_float32(value)
        largest = float(np.abs(whole).max(initial=0))
        if largest > MAX_VALUES[dtype]:
            wider = "`--dtype bf16` or `--dtype fp32`" if dtype == "fp16" else "`--dtype fp32`"
            raise UsageError(
                f"{name} of {ref} has the value {largest:.3g}; the maximum of {dtype} is {MAX_VALUES[dtype]:.5g}",
                f"use {wider}",
            )
        converted[name] = whole.astype(np.float16) if dtype == "fp16" else _to_bf16(whole)
        if float(np.linalg.norm(_to_float32(converted[name]) - whole)) > MAX_RELATIVE_LOSS * float(
            np.linalg.norm(whole)
        ):
            small.append(name)
    if small:
        more = f" and {len(small) - 1} other tensors" if len(small) > 1 else ""
        note(
            f"{small[0]}{more} of {ref} are too small for {dtype} and lose more than {MAX_RELATIVE_LOSS:.0%} of their size; `--dtype bf16` keeps them"
        )
    return converted


def _to_float32(value: Any) -> Any:
    """Convert an array in any of the formats to float32."""
    import numpy as np

    return (value.astype(np.uint32) << 16).view(np.float32) if value.dtype == np.uint16 else value.astype(np.float32)


def _to_bf16(values: Any) -> Any:
    """Convert float32 to the bits of bfloat16, rounded to nearest, ties to even."""
    import numpy as np

    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
