"""Random bases of the other families in the layout of their folders, as small as `tests.support.tiny_sd1`'s; need no download.

SD 2.x: one level attends, exact GELU, a text encoder that lacks its CLIP's last layer, v-prediction.
SDXL: the levels, transformer depths and layers a block of the real one, two text encoders, pooled embedding and size conditions.
SD 3: blocks over picture and words together, 16 latent channels that are shifted, T5 beside the two CLIPs. SD 3.5: with norms of queries and keys
and picture-only attention in the first blocks, and without T5.
FLUX.2 klein: two double-stream and two single-stream blocks, a language model of four layers, latents of 16 channels in patches.
Z-Image: two blocks behind two that refine image and prompt each, the same language model.
"""

from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tests.support import tiny_sd1

SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False,
}  # fmt: skip
WIDTH_2 = 24
"""Of the second text encoder of SDXL and of SD 3."""
LEFT_OUT: dict[str, dict[str, Any]] = {
    "sd1": {"safety_checker": None}, "sd2": {"safety_checker": None}, "sdxl": {}, "sd3": {}, "sd35": {"text_encoder_3": None, "tokenizer_3": None},
    "flux2-klein": {}, "z-image": {},
}  # fmt: skip
"""What diffusers' pipelines of these bases are told to open without."""
WIDTH_3 = 48
"""Of what T5 says: no narrower than both CLIPs side by side."""


def clip(words: CLIPTokenizer, width: int, layers: int, act: str) -> CLIPModel:
    """Both towers; the text tower's config names the ids that real ones name (0, 2, 1: not the tokenizer's)."""
    shape = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 2,
        "projection_dim": width,
        "hidden_act": act,
    }
    said = {
        "vocab_size": len(words),
        "max_position_embeddings": tiny_sd1.TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    vision = {
        "image_size": tiny_sd1.CLIP_SIDE,
        "patch_size": 8,
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 16,
    }
    config = CLIPConfig(
        text_config=shape | said | {"num_hidden_layers": layers}, vision_config=shape | vision, projection_dim=width
    )
    found = CLIPModel(config)
    with torch.no_grad():  # as wide as a trained table, so that prompts differ
        found.text_model.get_input_embeddings().weight.normal_(0, 0.3)
    return found


def text_encoder(towers: CLIPModel, layers: int) -> CLIPTextModel:
    """The text tower's first layers and its last norm, as a base keeps them."""
    config = towers.config.text_config
    config = type(config)(**(config.to_dict() | {"num_hidden_layers": layers}))
    found = CLIPTextModel(config)
    found.load_state_dict(towers.text_model.state_dict(), strict=False)
    return found


def projected(towers: CLIPModel) -> CLIPTextModelWithProjection:
    """The text tower with its projection."""
    found = CLIPTextModelWithProjection(towers.config.text_config)
    found.text_model.load_state_dict(towers.text_model.state_dict())
    found.text_projection.load_state_dict(towers.text_projection.state_dict())
    return found


def sd2(folder: Path, *, with_clip: bool = True, prediction: str = "v_prediction") -> Path:
    """A base in SD 2.1's layout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        words = tiny_sd1.tokenizer()
        towers = clip(words, tiny_sd1.WIDTH, 3, "gelu")
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=tiny_sd1.WIDTH, attention_head_dim=(2, 4), norm_num_groups=4,
            use_linear_projection=True,
        )  # fmt: skip
        vae = tiny_sd1.vae()
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder(towers, 2), tokenizer=words, unet=unet, scheduler=DDIMScheduler(prediction_type=prediction, **SCHEDULE),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    if with_clip:
        towers.save_pretrained(folder / "clip")
    return folder


def sd1(folder: Path) -> Path:
    """`tests.support.tiny_sd1`'s base with two residual blocks a level and attention in its autoencoder, as SD 1.5 has them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        words = tiny_sd1.tokenizer()
        towers = clip(words, tiny_sd1.WIDTH, 2, "quick_gelu")
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=tiny_sd1.WIDTH, attention_head_dim=2, norm_num_groups=4,
        )  # fmt: skip
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(4, 4, 8),
            latent_channels=4, norm_num_groups=2, sample_size=32, layers_per_block=2,
        )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder(towers, 2), tokenizer=words, unet=unet, scheduler=DDIMScheduler(**SCHEDULE), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def sdxl_unet() -> UNet2DConditionModel:
    """SDXL's denoiser: no attention at the first level, two and ten transformers a block behind it (here one and two)."""
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 4), cross_attention_dim=tiny_sd1.WIDTH + WIDTH_2, norm_num_groups=4, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=WIDTH_2 + 6 * 4,
    )  # fmt: skip


def sdxl(folder: Path, *, with_clip: bool = True) -> Path:
    """A base in SDXL 1.0's layout; with both of its CLIPs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        words = tiny_sd1.tokenizer()
        first, second = clip(words, tiny_sd1.WIDTH, 2, "quick_gelu"), clip(words, WIDTH_2, 3, "gelu")
        unet, vae = sdxl_unet(), tiny_sd1.vae()
    pipe = StableDiffusionXLPipeline(
        vae=vae, text_encoder=text_encoder(first, 2), text_encoder_2=projected(second), tokenizer=words, tokenizer_2=tiny_sd1.tokenizer(), unet=unet,
        scheduler=EulerDiscreteScheduler(**{k: v for k, v in SCHEDULE.items() if k not in ("clip_sample", "set_alpha_to_one")}),
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    if with_clip:
        first.save_pretrained(folder / "clip")
        second.save_pretrained(folder / "clip_2")
    return folder


def letters() -> T5TokenizerFast:
    """T5's kind of tokenizer; every letter is a token."""
    return T5TokenizerFast(
        vocab=[
            ("<pad>", 0.0),
            ("</s>", 0.0),
            ("<unk>", 0.0),
            ("\u2581", -2.0),
            *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz"),
        ],
        extra_ids=0,
    )


def reader() -> T5EncoderModel:
    """T5's encoder, gated GELU as in v1.1."""
    return T5EncoderModel(
        T5Config(
            vocab_size=30, d_model=WIDTH_3, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
        )
    )


def transformer(*, newer: bool) -> SD3Transformer2DModel:
    """SD 3's denoiser, or 3.5's; outputs that are not all zeros at the first blocks' gates."""
    own: dict[str, Any] = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)} if newer else {}
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=3, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=WIDTH_3,
        caption_projection_dim=16, pooled_projection_dim=tiny_sd1.WIDTH + WIDTH_2, out_channels=16, pos_embed_max_size=12, **own,
    )  # fmt: skip


def sd3(folder: Path, *, with_clip: bool = True, newer: bool = False) -> Path:
    """A base in SD 3 medium's layout, or (`newer`) in 3.5 medium's, without T5; with both of its CLIPs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5 if newer else 4)
        words = tiny_sd1.tokenizer()
        first, second = clip(words, tiny_sd1.WIDTH, 2, "quick_gelu"), clip(words, WIDTH_2, 3, "gelu")
        denoiser, t5 = transformer(newer=newer), None if newer else reader()
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(4, 4, 8),
            latent_channels=16, norm_num_groups=2, sample_size=32, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
            use_post_quant_conv=False, mid_block_add_attention=False,
        )  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer=denoiser, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, text_encoder=projected(first), tokenizer=words,
        text_encoder_2=projected(second), tokenizer_2=tiny_sd1.tokenizer(), text_encoder_3=t5, tokenizer_3=letters() if t5 else None,
    )  # type: ignore[arg-type]  # fmt: skip
    pipe.save_pretrained(folder)
    if with_clip:
        first.save_pretrained(folder / "clip")
        second.save_pretrained(folder / "clip_2")
    return folder


QWEN_WIDTH, QWEN_LAYERS = 16, 4
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
"""What Qwen3's own template makes of one message."""


def qwen_tokenizer() -> Qwen2TokenizerFast:
    """Every byte is a token, and " dog" and " cat" are."""
    pieces = [*sorted(tiny_sd1.ByteLevel.alphabet())]
    merges = [("d", "o"), ("do", "g"), ("\u0120", "dog"), ("c", "a"), ("ca", "t"), ("\u0120", "cat")]
    pieces += ["".join(pair) for pair in merges]
    words = Qwen2TokenizerFast(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=131072, unk_token=None,
        eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    words.add_tokens(["<think>", "</think>"])
    words.chat_template = CHAT_TEMPLATE
    return words


def qwen3(words: Qwen2TokenizerFast) -> Qwen3ForCausalLM:
    """A language model whose token table is its output layer too, with rows that no token has, as the real one."""
    config = Qwen3Config(
        vocab_size=len(words) + 7, hidden_size=QWEN_WIDTH, intermediate_size=32, num_hidden_layers=QWEN_LAYERS, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    reader = Qwen3ForCausalLM(config)
    with torch.no_grad():  # as wide as a trained table, so that prompts differ
        reader.get_input_embeddings().weight.normal_(0, 0.3)
    return reader


def flux2_klein(folder: Path, *, with_clip: bool = False, distilled: bool = False) -> Path:
    """A base in FLUX.2 klein's layout; `with_clip`: with a CLIP of a text space of its own beside it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        words = qwen_tokenizer()
        reader = qwen3(words)
        denoiser = Flux2Transformer2DModel(
            in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=3 * QWEN_WIDTH,
            timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False, mlp_ratio=2.0,
        )  # fmt: skip
        vae = AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(4, 8),
            latent_channels=4, norm_num_groups=2, sample_size=32, layers_per_block=1, mid_block_add_attention=False,
        )  # fmt: skip
        vae.bn.running_mean.normal_(0, 0.1)
        vae.bn.running_var.uniform_(0.5, 2)
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    pipe = Flux2KleinPipeline(scheduler, vae, reader, words, denoiser, is_distilled=distilled)
    pipe.save_pretrained(folder)
    if with_clip:
        _add_clip(folder)
    return folder


def z_image(folder: Path, *, with_clip: bool = False, distilled: bool = False) -> Path:
    """A base in Z-Image's layout, or in Z-Image-Turbo's (`distilled`); `with_clip`: with a CLIP of a text space of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        words = qwen_tokenizer()
        reader = qwen3(words)
        denoiser = ZImageTransformer2DModel(
            in_channels=4, dim=32, n_layers=2, n_refiner_layers=2, n_heads=2, n_kv_heads=2, cap_feat_dim=QWEN_WIDTH, axes_dims=[8, 4, 4],
            axes_lens=[600, 32, 32],
        )  # fmt: skip
        for pad in (denoiser.x_pad_token, denoiser.cap_pad_token):
            torch.nn.init.normal_(pad, std=0.5)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(4, 8),
            latent_channels=4, norm_num_groups=2, sample_size=32, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
            use_post_quant_conv=False, mid_block_add_attention=False,
        )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if distilled else 6.0)
    ZImagePipeline(scheduler, vae, reader, words, denoiser).save_pretrained(folder)
    if with_clip:
        _add_clip(folder)
    return folder


def _add_clip(folder: Path) -> None:
    """A CLIP beside a base whose text space is another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        clip(tiny_sd1.tokenizer(), tiny_sd1.WIDTH, 2, "quick_gelu").save_pretrained(folder / "clip")
    tiny_sd1.tokenizer().save_pretrained(folder / "clip")


def folders(top: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """A base of each family named, without an image tower."""
    made = {"sd1": lambda path: tiny_sd1.build(path, clip=False), "sd2": lambda path: sd2(path, with_clip=False),
            "sdxl": lambda path: sdxl(path, with_clip=False), "sd3": lambda path: sd3(path, with_clip=False)}  # fmt: skip
    return {name: made[name](top / name) for name in names}
