"""Number formats of exported files: weights in half precision, refused or named where they do not survive it."""

from collections.abc import Callable, Mapping
from typing import Any

from objtune_cli.errors import UsageError
from objtune_cli.store.refs import Ref

DTYPES = ("fp32", "fp16", "bf16")
"""An adapter is kept in fp32."""
MAX_VALUES = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}
MAX_RELATIVE_LOSS = 0.01
"""Share of a tensor's norm that a number format may lose before a line says so."""


def convert(
    ref: Ref, tensors: Mapping[str, Any], dtype: str, note: Callable[[str], None] = lambda text: None
) -> Mapping[str, Any]:
    """Finite weights in a number format; bf16 as uint16, for numpy has no such type.

    Raises:
        UsageError: A value is too large for it.
    """
    import numpy as np

    if dtype == "fp32":
        return tensors
    found: dict[str, Any] = {}
    small = []
    for name, value in tensors.items():
        whole = _to_float32(value)
        largest = float(np.abs(whole).max(initial=0))
        if largest > MAX_VALUES[dtype]:
            wider = "`--dtype bf16` or `--dtype fp32`" if dtype == "fp16" else "`--dtype fp32`"
            raise UsageError(
                f"{name} of {ref} holds {largest:.3g}, {dtype} ends at {MAX_VALUES[dtype]:.5g}", f"{wider} holds it"
            )
        found[name] = whole.astype(np.float16) if dtype == "fp16" else _to_bf16(whole)
        if float(np.linalg.norm(_to_float32(found[name]) - whole)) > MAX_RELATIVE_LOSS * float(np.linalg.norm(whole)):
            small.append(name)
    if small:
        more = f" and {len(small) - 1} other tensors" if len(small) > 1 else ""
        note(
            f"{small[0]}{more} of {ref} are too small for {dtype} and lose more than {MAX_RELATIVE_LOSS:.0%} of their size; `--dtype bf16` keeps them"
        )
    return found


def _to_float32(value: Any) -> Any:
    """An array of any of the formats as float32."""
    import numpy as np

    return (value.astype(np.uint32) << 16).view(np.float32) if value.dtype == np.uint16 else value.astype(np.float32)


def _to_bf16(values: Any) -> Any:
    """float32 to the bits of bfloat16, rounded to the nearest, ties to even."""
    import numpy as np

    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
