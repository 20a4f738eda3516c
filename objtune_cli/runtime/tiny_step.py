"""One tiny training step on a device in a number format, to see whether it computes what training needs."""

import torch
from torch.nn import functional as F

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats by the names that `--precision` has."""


def find_failure(device: str, dtype: torch.dtype) -> str:
    """Run a convolution, a matrix product and attention forward and backward; return why they fail, or "".

    Random values of 1 x 4 x 8 x 8 pixels; the gradients of all weights must be finite.
    """
    try:
        generator = torch.Generator().manual_seed(0)
        pixels, kernel, projection = (
            torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
            for shape in ((1, 4, 8, 8), (8, 4, 3, 3), (8, 8))
        )
        rows = F.conv2d(pixels, kernel, padding=1).flatten(2).transpose(1, 2) @ projection
        F.scaled_dot_product_attention(rows[:, None], rows[:, None], rows[:, None]).float().square().mean().backward()
        gradients = [tensor.grad for tensor in (pixels, kernel, projection)]
        finite = all(each is not None and bool(torch.isfinite(each).all()) for each in gradients)
        return "" if finite else "its gradients are not finite"
    except Exception as error:  # every backend raises other exceptions
        return (str(error).splitlines() or [type(error).__name__])[0]
