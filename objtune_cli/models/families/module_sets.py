"""Sets of layers for `train.target_modules`, as suffixes of their names."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTION = ("conv1", "conv2")
MODULES: dict[str, tuple[str, ...]] = {
    "none": (),
    "cross-kv": ("attn2.to_k", "attn2.to_v"),
    "attention": ATTENTION,
    "attention+ff": ATTENTION + FEED_FORWARD,
    "all": ATTENTION + FEED_FORWARD + CONVOLUTION,
}
"""`train.target_modules` to suffixes of a U-Net's layer names; "none" trains no layer of the denoiser (textual inversion)."""
