"""Training losses, one value per sample; the caller reduces them."""

from torch import Tensor


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    r"""Squared error on the object, normalised by the object's own area (L_OS).

    $$ \ell_b = \frac{\sum_{chw} m_{bhw} (\hat y - y)_{bchw}^2}{C \sum_{hw} m_{bhw}} $$

    An object that covers 5 % of the image gets the same weight as one that fills it.

    Args:
        pred: Model output, shape (B, C, H, W), any float dtype.
        target: Noise or velocity to regress, same shape as `pred`.
        mask: Coverage in [0, 1] at latent resolution, shape (B, 1, H, W).

    Returns:
        Loss per sample, shape (B,), float32; 0 where the mask is empty.

    Raises:
        ValueError: The shapes do not match.

    Source:
        The object-specific loss of arXiv:2401.15708, normalised by the object's area; Break-A-Scene
        (arXiv:2305.16311) averages over the whole image.
    """
    if pred.shape != target.shape:
        raise ValueError(f"pred {tuple(pred.shape)} and target {tuple(target.shape)} differ")
    if mask.shape != (pred.shape[0], 1, *pred.shape[2:]):
        raise ValueError(f"mask {tuple(mask.shape)} does not fit pred {tuple(pred.shape)}")
    mask = mask.float()
    error = (pred.float() - target.float()).square().mean(dim=1, keepdim=True)
    return (mask * error).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp_min(1e-6)


def photo(pred: Tensor, target: Tensor, mask: Tensor, region: str) -> Tensor:
    """Return the loss of the photo over one of three regions, shape (B,), float32.

    Args:
        pred, target, mask: As for `masked_mse`.
        region: "mask-normalized": inside the mask, divided by its area. "mask": inside the mask, divided by
            the image's area (Break-A-Scene). "image": everywhere (DreamBooth, textual inversion, Custom Diffusion).

    Raises:
        ValueError: Another region, or shapes that do not match.
    """
    if region == "mask-normalized":
        return masked_mse(pred, target, mask)
    if region == "mask":
        return masked_mse(pred, target, mask) * mask.float().mean(dim=(1, 2, 3))
    if region == "image":
        return mse(pred, target)
    raise ValueError(f"region {region!r}")


def mse(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per sample (L_CC's inner term), shape (B,), float32."""
    if pred.shape != target.shape:
        raise ValueError(f"pred {tuple(pred.shape)} and target {tuple(target.shape)} differ")
    return (pred.float() - target.float()).square().flatten(1).mean(dim=1)
