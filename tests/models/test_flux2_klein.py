"""FLUX.2 klein against diffusers: prompts, latents, the flow, training levels, images; placeholder tokens in Qwen3."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from objtune_cli.config.sections import Embed
from objtune_cli.embedding import prototype
from objtune_cli.errors import DamagedError, IncompatibleError, MissingError
from objtune_cli.generation.sampling import resample, sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.lora import layers as adapter
from objtune_cli.models import attention, loading, memory_savings, precision, registry
from objtune_cli.models import clip as towers
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.families import flux2
from objtune_cli.models.placeholders import Placeholders, check_objects_read, class_token_embeddings
from objtune_cli.numerics import flow_matching
from tests.support import full_size_configs, tiny_families

CPU = torch.device("cpu")
PROMPT = "a photo of a dog"
STATES = (1, 2, 3)
"""The hidden states that a language model of four layers gives."""
SETTINGS = SamplingSettings(num_inference_steps=4, guidance_scale=4.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.flux2_klein(tmp_path_factory.mktemp("klein") / "base")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    from diffusers import Flux2KleinPipeline

    pipe = Flux2KleinPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def model(folder: Path) -> BaseModel:
    return loading.load(folder, CPU, torch.float32)


def test_a_folder_says_its_family(folder: Path) -> None:
    base = registry.resolve(str(folder))
    assert (base.family.name, base.record()["family"], base.record()["prediction"]) == ("flux2-klein",) * 2 + ("flow",)
    assert (base.resolution, base.size_multiple, base.num_latent_cells, base.clip_path) == (32, 4, 64, None)
    assert base.sampling == {"num_inference_steps": 50, "guidance_scale": 4.0}
    assert base.training["target_blocks"] == "all"


@torch.no_grad()
def test_prompts_are_encoded_as_diffusers_does(model: BaseModel, pipe: Any) -> None:
    """Difference 0, padding included; layers that nobody reads are not there, and leading tokens need no others."""
    for text in (PROMPT, "", "x" * 700):
        (theirs, _), ours = pipe.encode_prompt(text, text_encoder_out_layers=STATES), model.encode_prompt([text])
        assert torch.equal(ours.sequence, theirs) and ours.pooled is None
        first = model.encode_prompt([text], 12).sequence
        torch.testing.assert_close(first, theirs[:, :12], rtol=1e-5, atol=1e-5)
    assert len(model.text_encoder.layers) == 3 < tiny_families.QWEN_LAYERS and not hasattr(
        model.text_encoder, "lm_head"
    )
    model.prompt_syntax = "a1111"
    assert torch.equal(model.encode_prompt(["a (red:1.3) dog"]).sequence, model.encode_prompt(["a red dog"]).sequence)


@torch.no_grad()
def test_latents_are_packed_and_normalised_as_diffusers_does(model: BaseModel, pipe: Any) -> None:
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.encode_image(picture)
    assert latents.shape == (2, model.latent_channels, 8, 8)
    torch.testing.assert_close(latents, pipe._encode_vae_image(picture, None), rtol=0, atol=1e-6)
    decoded = pipe.vae.decode(pipe.vae.encode(picture).latent_dist.mode()).sample.clamp(-1, 1)
    torch.testing.assert_close(model.decode_latents(latents), decoded, rtol=0, atol=1e-5)


def test_images_are_those_of_diffusers_own_pipeline(model: BaseModel, pipe: Any) -> None:
    """Both halves of guidance in one call here, in two there; also where the image is not square."""
    for height, width in ((32, 32), (24, 48)):
        settings = SamplingSettings(num_inference_steps=4, guidance_scale=4.0, height=height, width=width)
        ours = model.decode_latents(sample(model, PROMPT, [7], settings))
        noise = torch.randn(1, 16, height // 4, width // 4, generator=torch.Generator().manual_seed(7))
        theirs = pipe(
            prompt=PROMPT, latents=noise, num_inference_steps=4, guidance_scale=4.0, height=height, width=width, output_type="pt",
            text_encoder_out_layers=STATES,
        ).images  # fmt: skip
        torch.testing.assert_close((ours + 1) / 2, theirs, rtol=1e-4, atol=1e-4)


def test_noise_levels_of_sampling_are_those_of_diffusers(model: BaseModel) -> None:
    """At full sizes too; samplers of other classes get the same shift."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    for cells, steps in ((4096, 50), (1024, 50), (64, 4), (9216, 28)):
        assert flux2.sampling_shift(cells, steps) == pytest.approx(math.exp(compute_empirical_mu(cells, steps)))
        sampler = model.family.make_sampler(model.scheduler, "auto", cells)
        sampler.set_timesteps(steps)
        theirs = type(model.scheduler).from_config(model.scheduler.config)
        levels = torch.linspace(1.0, 1 / steps, steps).tolist()
        theirs.set_timesteps(sigmas=levels, mu=compute_empirical_mu(cells, steps))
        torch.testing.assert_close(sampler.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-3)
        other = model.family.make_sampler(model.scheduler, "unipc", cells)
        other.set_timesteps(steps)
        assert other.config.flow_shift == pytest.approx(flux2.sampling_shift(cells, steps))


def test_prediction_noise_and_target_are_the_flows(model: BaseModel, pipe: Any) -> None:
    """Against diffusers' transformer and scheduler, whose levels are those of diffusers' training script before the shift."""
    g = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 16, 8, 8, generator=g), torch.randn(2, 16, 8, 8, generator=g)
    t = torch.tensor([3, 999])
    z_t, target = model.add_noise_and_target(z, eps, t)
    levels = model.family.training_levels(model, 64)
    plain = pipe.scheduler.from_config(pipe.scheduler.config).sigmas.flip(0)
    shift = math.exp(0.5 + 0.65 * (64 - 256) / 3840)
    torch.testing.assert_close(levels, shift * plain / (1 + (shift - 1) * plain))
    assert float(levels[-1]) == 1 and torch.equal(z_t[1], eps[1]) and torch.equal(target, eps - z)
    torch.testing.assert_close(z_t, flow_matching.add_noise(z, eps, levels, t), rtol=0, atol=0)
    condition = model.encode_prompt([PROMPT, "a cat"]).detach()
    with torch.no_grad():
        ours = model.predict(z_t, t, condition)
        ids = pipe._prepare_latent_ids(z_t)
        theirs = pipe.transformer(
            hidden_states=pipe._pack_latents(z_t), timestep=levels[t], guidance=None, encoder_hidden_states=condition.sequence,
            txt_ids=pipe._prepare_text_ids(condition.sequence), img_ids=ids, return_dict=False,
        )[0]  # fmt: skip
    torch.testing.assert_close(ours, pipe._unpack_latents_with_ids(theirs, ids), rtol=0, atol=1e-6)


def test_shift_of_training_is_that_of_flux1(model: BaseModel) -> None:
    """3.16 at 1024 px, 1.88 at 512 px: the median level of a logit-normal law is shift / (1 + shift)."""
    for side, shift in ((64, 3.158), (32, 1.878)):
        middle = float(model.family.training_levels(model, side**2)[499])
        assert middle == pytest.approx(shift / (1 + shift), abs=2e-3)


@pytest.mark.parametrize(("size", "parameters"), [("4b", 3_875_544_576), ("9b", 9_078_581_248)])
def test_the_real_sizes_fit_together(model: BaseModel, size: str, parameters: int) -> None:
    """The denoiser as its repository's config says, without weights; and its layers that learn."""
    from diffusers import Flux2Transformer2DModel

    config = full_size_configs.FLUX2[size]
    with torch.device("meta"):
        model.denoiser = Flux2Transformer2DModel(**config).eval()
    assert sum(p.numel() for p in model.denoiser.parameters()) == parameters
    model.device, model._vae_config = torch.device("meta"), {"block_out_channels": (1,) * 4, "sample_size": 1024}
    condition = Conditioning(torch.empty(1, 512, config["joint_attention_dim"], device="meta"))
    with torch.no_grad():
        assert model.predict(torch.empty(1, 128, 64, 64, device="meta"), torch.tensor([500]), condition).shape == (
            1,
            128,
            64,
            64,
        )
    assert (model.resolution, model.size_multiple, model.latent_channels) == (1024, 16, 128)
    adapter.add(model, 2, "attention", seed=0)
    learned = {name.split(".lora_A")[0] for name, _ in model.denoiser.named_parameters() if "lora_A" in name}
    assert len(learned) == 8 * config["num_layers"] + 2 * config["num_single_layers"]


def test_a_placeholder_stands_for_a_word(model: BaseModel) -> None:
    """The class word's own vectors at the same place say the same; the tied table keeps its size, and only rows learn."""
    plain = model.encode_prompt([PROMPT, "a dog"]).detach().sequence
    rows = class_token_embeddings(model, "dog")
    assert rows.shape == (1, tiny_families.QWEN_WIDTH)
    words = Placeholders(model)
    words.add("rex", rows, "dog")
    text = [words.expand("a photo of a <rex>"), words.expand("a <rex>")]
    torch.testing.assert_close(model.encode_prompt(text).sequence, plain, rtol=1e-5, atol=1e-5)
    learned = torch.cat([rows, rows]).requires_grad_(True)
    words = Placeholders(model)
    words.add("tom", learned, "dog")
    prompt = words.expand("my <tom> on the beach")
    mask = words.token_mask(prompt, "tom")
    assert mask.shape == (512,) and int(mask.sum()) == 2
    model.encode_prompt([prompt]).sequence.square().sum().backward()
    assert float(learned.grad.abs().min(0).values.max()) > 0
    assert check_objects_read(model, prompt) == []
    in_context = words.encode_with_class_context("my <tom> on the beach", {"tom": "dog"}).sequence[0]
    class_rows = model.encode_prompt(["my dog on the beach"]).sequence[0]
    first, last = mask.nonzero().flatten().tolist()
    assert last == first + 1 and not torch.equal(in_context[first], class_rows[first])
    assert torch.equal(in_context[:first], class_rows[:first])
    assert torch.equal(in_context[last + 1 : 511], class_rows[last:510])  # one token less for the class word


def test_the_encoder_stays_in_bf16_and_rows_in_float32(folder: Path) -> None:
    model = loading.load(folder, CPU, torch.bfloat16)
    assert next(model.text_encoder.parameters()).dtype == torch.bfloat16
    words = Placeholders(model)
    rows = class_token_embeddings(model, "dog").requires_grad_(True)
    words.add("rex", rows, "dog")
    model.encode_prompt([words.expand("a <rex>")]).sequence.float().square().sum().backward()
    assert rows.dtype == rows.grad.dtype == torch.float32 and float(rows.grad.abs().max()) > 0


def test_guidance_that_begins_late(model: BaseModel) -> None:
    """And images that are sampled again from the middle of the schedule."""
    always, late, never = (
        sample(
            model,
            PROMPT,
            [1],
            SamplingSettings(num_inference_steps=4, guidance_scale=scale, guidance_interval_high=start),
        )
        for scale, start in ((4.0, 1.0), (4.0, 0.8), (1.0, 1.0))
    )
    assert not torch.equal(late, always) and not torch.equal(late, never)
    again = resample(model, always, "a cat", [2], 0.5, SETTINGS)
    keep = torch.zeros(8, 8)
    kept = resample(model, always, "a cat", [2], 0.5, SETTINGS, change_map=keep)
    assert not torch.allclose(again, always, atol=1e-2)
    torch.testing.assert_close(kept, always, rtol=0, atol=1e-5)


def test_a_clip_of_another_text_space_finds_words_for_the_photo(model: BaseModel, tmp_path: Path) -> None:
    """The token starts at vectors of words that bring the class nearer to the photo's prototype."""
    folder = tiny_families.flux2_klein(tmp_path, with_clip=True)
    clip = towers.load(folder / "clip", model)
    mask = torch.zeros(40, 60)
    mask[10:30, 20:35] = 1
    photo = (torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.7 * mask, mask)
    started = prototype.initialise_token(model, clip, [photo], "dog", Embed(init="prototype", num_vectors=2))
    plain = prototype.initialise_token(model, clip, [photo], "dog", Embed(init="class", num_vectors=2))
    own = class_token_embeddings(model, "dog")
    assert started.token_embeddings.shape == (3, tiny_families.QWEN_WIDTH) and started.num_trainable == 2
    torch.testing.assert_close(started.token_embeddings[:2].norm(dim=1), own.norm(dim=1).mean().expand(2))
    assert torch.equal(started.token_embeddings[2:], own)
    assert not torch.allclose(started.token_embeddings, plain.token_embeddings)
    assert started.metrics["cos_after"] > started.metrics["cos_before"]


@torch.no_grad()
def test_our_attention_is_diffusers_own(model: BaseModel) -> None:
    """Queries, keys and values of both kinds of block, with rotary positions, taken apart and put together again."""
    batch = (
        torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([20, 700]),
        model.encode_prompt([PROMPT, "a cat"]),
    )
    plain = model.predict(*batch)
    with attention.record_cross_attention(model, 1) as seen:
        torch.testing.assert_close(model.predict(*batch), plain, rtol=1e-5, atol=1e-5)
    assert [len(maps) for maps in seen.maps.values()] == [2] and seen.maps[8][0].shape == (1, 64, 512)
    precision.run_norms_in_float32(model.denoiser)
    torch.testing.assert_close(model.predict(*batch), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_encoder_passes_gradients_to_the_rows(folder: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    model = loading.load(folder, CPU, torch.bfloat16)
    networks = (model.denoiser, model.text_encoder)
    before = [sum(p.nbytes for p in network.parameters()) for network in networks]
    memory_savings.quantise(model, bits)
    after = [sum(p.nbytes for p in network.parameters()) for network in networks]
    assert all(small < 0.75 * large for small, large in zip(after, before, strict=True))
    words, rows = Placeholders(model), class_token_embeddings(model, "dog").requires_grad_(True)
    words.add("rex", rows, "dog")
    condition = model.encode_prompt([words.expand("a <rex>")])
    model.predict(torch.randn(1, 16, 8, 8), torch.tensor([500]), condition).float().square().mean().backward()
    assert float(rows.grad.abs().max()) > 0


@torch.no_grad()
def test_pictures_beside_the_prompt_are_those_of_diffusers(model: BaseModel, pipe: Any) -> None:
    """Their tokens stand behind the image's, at times 10 and 20; only the image's velocity comes back."""
    g = torch.Generator().manual_seed(0)
    pictures = [torch.rand(1, 3, side, side, generator=g) * 2 - 1 for side in (16, 24)]
    z, sigma, condition = torch.randn(1, 16, 8, 8, generator=g), torch.tensor([0.6]), model.encode_prompt([PROMPT])
    without = model.family._predict_at(model, z, sigma, condition)
    model.references = tuple(model.encode_image(picture) for picture in pictures)
    ours = model.family._predict_at(model, z, sigma, condition)
    tokens, ids = pipe.prepare_image_latents(pictures, 1, None, CPU, torch.float32)
    image_ids = pipe._prepare_latent_ids(z)
    theirs = pipe.transformer(
        hidden_states=torch.cat([pipe._pack_latents(z), tokens], dim=1), timestep=sigma, encoder_hidden_states=condition.sequence,
        txt_ids=pipe._prepare_text_ids(condition.sequence), img_ids=torch.cat([image_ids, ids], dim=1), return_dict=False,
    )[0][:, :64]  # fmt: skip
    torch.testing.assert_close(ours, pipe._unpack_latents_with_ids(theirs, image_ids), rtol=0, atol=1e-6)
    assert not torch.allclose(ours, without, atol=1e-3)


def test_the_language_model_leaves_a_gpu_that_is_full(model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """While images are drawn; the next prompt brings it back."""
    moves: list[str] = []
    encoder = model.text_encoder
    monkeypatch.setattr(encoder, "to", lambda device: moves.append(str(device)) or encoder)
    monkeypatch.setattr(memory_savings, "empty_cache", lambda kind: None)
    for device, free in (("cuda", 1e6), ("cpu", 0.0), ("cuda", 0.0)):
        monkeypatch.setattr(memory_savings, "available_mb", lambda kind, free=free: free)
        model.device = torch.device(device)
        memory_savings.offload_language_model(model)
    assert moves == ["cpu"]
    model.device = CPU
    sample(model, PROMPT, [0], SamplingSettings(num_inference_steps=1, guidance_scale=1.0))
    assert moves == ["cpu", "cpu", "cpu"]  # the prompt and the empty negative prompt


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_encoder", {"hidden_size": 24}, "takes text features of width 48, its text encoder gives 72"),
        ("text_encoder", {"model_type": "mistral3"}, "has a text encoder of another kind: mistral3"),
        ("text_encoder", {"num_hidden_layers": 6}, "num_hidden_layers in text_encoder/config.json is 6"),
        ("vae", {"_class_name": "AutoencoderKL"}, "has an AutoencoderKL as its vae"),
        ("vae", {"latent_channels": 16}, "its denoiser takes 16 channels, and latents have 64"),
    ],
)
def test_parts_of_other_models_are_one_line(
    folder: Path, tmp_path: Path, part: str, change: dict[str, Any], message: str
) -> None:
    """Before any weights are opened."""
    shutil.copytree(folder, tmp_path / "base")
    config = tmp_path / "base" / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises((IncompatibleError, DamagedError), match=message):
        loading.load(tmp_path / "base", CPU, torch.float32)


def test_a_folder_without_its_encoder_names_it(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "text_encoder")
    with pytest.raises(MissingError, match="text_encoder/config.json"):
        registry.resolve(str(tmp_path / "base"))
