"""SD 3 and 3.5 against diffusers: conditions, the flow, pictures; what T5 reads in an object's place."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from objtune_cli.errors import IncompatibleError, InputError
from objtune_cli.generation.sampling import sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.lora import layers as adapter
from objtune_cli.models import attention, loading, precision, registry
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.placeholders import Placeholders, TokenCount, check_objects_read, class_token_embeddings
from objtune_cli.numerics import flow_matching
from tests.support import full_size_configs, tiny_families

CPU = torch.device("cpu")
PROMPT = "a photo of a dog"
NAMES = ("sd3", "sd35")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("flow")
    return {"sd3": tiny_families.sd3(top / "three"), "sd35": tiny_families.sd3(top / "three-five", newer=True)}


@pytest.fixture
def opened(folders: dict[str, Path]) -> Any:
    return lambda name: loading.load(folders[name], CPU, torch.float32)


def theirs(folder: Path, name: str) -> Any:
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **tiny_families.LEFT_OUT[name])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def halves(model: BaseModel, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The text features and the pooled vectors."""
    condition = model.encode_prompt([text])
    assert condition.pooled is not None and condition.pooled.shape == (1, model.family.pooled_size(model))
    return condition.sequence, condition.pooled


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_prompts_are_encoded_as_diffusers_does(folders: dict[str, Path], opened: Any, name: str) -> None:
    """With and without a negative prompt; difference 0."""
    model, pipe = opened(name), theirs(folders[name], name)
    assert (model.text_encoder_3 is None) == (name == "sd35")
    for text, negative in ((PROMPT, ""), ("", "blurry"), ("x" * 300, "a cat in the snow")):
        words, against, pooled, pooled_against = pipe.encode_prompt(
            text, None, None, device=CPU, negative_prompt=negative
        )
        for said, rows, row in ((text, words, pooled), (negative, against, pooled_against)):
            ours = halves(model, said)
            assert torch.equal(ours[0], rows) and torch.equal(ours[1], row)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_those_of_diffusers_own_pipeline(folders: dict[str, Path], opened: Any, name: str) -> None:
    """From the same noise, through the autoencoder with its shift."""
    model, pipe = opened(name), theirs(folders[name], name)
    ours = model.decode_latents(
        sample(
            model, PROMPT, [7], SamplingSettings(negative_prompt="blurry", num_inference_steps=4, guidance_scale=4.0)
        )
    )
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(7))
    shown = pipe(
        PROMPT,
        negative_prompt="blurry",
        latents=noise,
        num_inference_steps=4,
        guidance_scale=4.0,
        height=32,
        width=32,
        output_type="pt",
    )
    torch.testing.assert_close((ours + 1) / 2, shown.images, rtol=1e-4, atol=1e-4)
    again = model.decode_latents(
        sample(
            model,
            PROMPT,
            [7],
            SamplingSettings(negative_prompt="blurry", num_inference_steps=4, guidance_scale=4.0, scheduler="euler"),
        )
    )
    assert torch.equal(ours, again)


@pytest.mark.parametrize("name", NAMES)
def test_prediction_noise_and_target_are_the_flows(folders: dict[str, Path], opened: Any, name: str) -> None:
    """Against diffusers' scheduler and transformer: its tables run from noise to picture, levels here the other way; also after drawing."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    model, g = opened(name), torch.Generator().manual_seed(0)
    sample(model, PROMPT, [1], SamplingSettings(num_inference_steps=2, guidance_scale=1.0))
    schedule = FlowMatchEulerDiscreteScheduler.from_pretrained(
        folders[name], subfolder="scheduler", local_files_only=True
    )
    z, eps = torch.randn(2, 16, 8, 8, generator=g), torch.randn(2, 16, 8, 8, generator=g)
    t = torch.tensor([3, 999])
    z_t, aim = model.add_noise_and_target(z, eps, t)
    told = schedule.timesteps[999 - t]
    torch.testing.assert_close(z_t, schedule.scale_noise(z, told, eps), rtol=0, atol=1e-6)
    assert torch.equal(aim, eps - z) and float(schedule.timesteps[0]) == 1000 and torch.equal(z_t[1], eps[1])
    condition = model.encode_prompt([PROMPT, "a cat"])
    with torch.no_grad():
        ours = model.predict(z_t, t, condition)
        direct = model.denoiser(z_t, condition.sequence, condition.pooled, told).sample
    assert torch.equal(ours, direct)
    assert (model.num_train_timesteps, model.size_multiple, model.resolution, model.prediction) == (1000, 8, 32, "flow")


@pytest.mark.parametrize("name", NAMES)
def test_the_real_sizes_fit_together(opened: Any, name: str) -> None:
    """The denoiser as its repository's config says, without weights: a prompt's 333 rows of 4096 and a pooled vector of 2048 in, 16 channels out."""
    from diffusers import SD3Transformer2DModel

    model = opened(name)
    with torch.device("meta"):
        model.denoiser = SD3Transformer2DModel(**full_size_configs.TRANSFORMERS[name]).eval()
    model.device = torch.device("meta")
    assert sum(p.numel() for p in model.denoiser.parameters()) == {"sd3": 2_028_328_000, "sd35": 2_243_171_520}[name]
    condition = Conditioning(torch.empty(1, 77 + 256, 4096, device="meta"), torch.empty(1, 2048, device="meta"))
    with torch.no_grad():
        assert model.predict(torch.empty(1, 16, 128, 128, device="meta"), torch.tensor([500]), condition).shape == (
            1,
            16,
            128,
            128,
        )


def test_levels_are_logit_normal() -> None:
    """The median in the middle, and the share within one deviation of the logit that a normal law has."""
    t = flow_matching.timesteps(20_000, 1000, torch.Generator().manual_seed(0))
    assert t.dtype == torch.int64 and int(t.min()) >= 0 and int(t.max()) < 1000
    logit = torch.logit((t + 0.5) / 1000)
    assert abs(float(logit.median())) < 0.03 and abs(float((logit.abs() < 1).float().mean()) - 0.6827) < 0.01


def test_latents_are_shifted_and_scaled(folders: dict[str, Path], opened: Any) -> None:
    model, pipe = opened("sd3"), theirs(folders["sd3"], "sd3")
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean = pipe.vae.encode(picture).latent_dist.mean
    torch.testing.assert_close(model.encode_image(picture), (mean - 0.0609) * 1.5305)


def test_t5_must_read_all_of_an_objects_class_word(opened: Any) -> None:
    """T5 reads 256 tokens, letters here, the CLIPs 77; each is asked."""
    model = opened("sd3")
    words = Placeholders(model)
    words.add("rex", class_token_embeddings(model, "a"), "dog")
    words.add("eel", class_token_embeddings(model, "b"), "e" * 255)
    assert check_objects_read(model, words.expand("a <rex>")) == []
    assert check_objects_read(model, words.expand("<rex>" + " x" * 80)) == [TokenCount(83, 77)]
    with pytest.raises(
        InputError, match="<rex> is at tokens 82 to 82 of the prompt, but the base reads only the first 76"
    ):
        check_objects_read(model, words.expand("x " * 80 + "<rex>"))
    with pytest.raises(
        InputError, match=r"<eel> is at tokens \d+ to \d+ of the prompt, but the base reads only the first 255"
    ):
        check_objects_read(model, words.expand("<eel>"))


@torch.no_grad()
def test_t5_reads_the_class_word_in_an_objects_place(opened: Any) -> None:
    model = opened("sd3")
    words = Placeholders(model)
    words.add("rex", torch.cat([class_token_embeddings(model, "dog")] * 2), "dog")
    said, plain = model.encode_prompt([words.expand("my <rex> in the snow"), "my dog in the snow"]).sequence
    assert torch.equal(said[77:], plain[77:]) and float(plain[77:].abs().max()) > 0
    assert not torch.equal(said[:77], plain[:77])


def test_an_objects_rows_are_its_tokens_and_its_class_word(opened: Any) -> None:
    """T5's rows are letters here: those of the class word in each object's own place, though both have the same one."""
    model = opened("sd3")
    words = Placeholders(model)
    for name in ("rex", "tom"):
        words.add(name, class_token_embeddings(model, "dog")[:2], "dog")
    text = words.expand("a dog, my <rex> and <tom>, and <rex>")
    plain = "a dog, my dog and a dog, and a dog"
    assert model.with_class_words(text) == plain
    pieces = model.tokenizer_3.convert_ids_to_tokens(model.tokenizer_3(plain).input_ids)
    found = {name: words.token_mask(text, name) for name in ("rex", "tom")}
    for name, count in (("rex", 2), ("tom", 1)):
        at = found[name][77:].nonzero().flatten().tolist()
        assert (
            "".join(pieces[i] for i in at).replace("\u2581", "") == "dog" * count
            and int(found[name][:77].sum()) == 2 * count
        )
    assert not (found["rex"] & found["tom"]).any() and len(found["rex"]) == 77 + 256
    bare = opened("sd35")
    other = Placeholders(bare)
    other.add("rex", class_token_embeddings(bare, "dog")[:2], "dog")
    assert int(other.token_mask(other.expand("my <rex>"), "rex").sum()) == 2


@torch.no_grad()
@pytest.mark.parametrize("way", ["index", "folder"])
def test_without_t5_its_rows_are_zeros(folders: dict[str, Path], opened: Any, tmp_path: Path, way: str) -> None:
    """Left out of the index or of the folder; the base is another one then."""
    whole = opened("sd3").encode_prompt([PROMPT])
    shutil.copytree(folders["sd3"], tmp_path / "base")
    if way == "folder":
        shutil.rmtree(tmp_path / "base" / "text_encoder_3")
    else:
        index = tmp_path / "base" / "model_index.json"
        index.write_text(
            json.dumps(json.loads(index.read_text()) | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]})
        )
    found = loading.load(tmp_path / "base", CPU, torch.float32).encode_prompt([PROMPT])
    assert torch.equal(found.sequence[:, :77], whole.sequence[:, :77]) and torch.equal(found.pooled, whole.pooled)
    assert not found.sequence[:, 77:].any() and whole.sequence[:, 77:].any()
    assert registry.resolve(str(tmp_path / "base")).fingerprint != registry.resolve(str(folders["sd3"])).fingerprint


def test_a_sampler_of_diffusion_is_one_line(opened: Any) -> None:
    with pytest.raises(IncompatibleError, match=r"Stable Diffusion 3 does not support the sampler ddim") as error:
        sample(
            opened("sd3"), PROMPT, [0], SamplingSettings(num_inference_steps=1, guidance_scale=1.0, scheduler="ddim")
        )
    assert error.value.code == 6


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_our_attention_is_diffusers_own(opened: Any, name: str) -> None:
    """Queries, keys and values taken apart and put together again, in joint layers and in the picture's own."""
    model = opened(name)
    given = (
        torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([20, 700]),
        model.encode_prompt([PROMPT, "a cat"]),
    )
    plain = model.predict(*given)
    with attention.record_cross_attention(model, 1) as seen:
        torch.testing.assert_close(model.predict(*given), plain, rtol=1e-5, atol=1e-5)
    assert [len(maps) for maps in seen.maps.values()] == [3] and seen.maps[4][0].shape == (1, 16, 333)
    assert torch.equal(model.predict(*given), plain)
    precision.run_norms_in_float32(model.denoiser)
    torch.testing.assert_close(model.predict(*given), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_no_bit(opened: Any, name: str) -> None:
    """Gradients of the LoRA and of the token's vectors."""
    found = []
    for again in (False, True):
        model = opened(name)
        words = Placeholders(model)
        rows = class_token_embeddings(model, "dog").requires_grad_(True)
        words.add("rex", rows, "dog")
        layers = adapter.add(model, 2, "all", seed=0)
        if again:
            model.denoiser.enable_gradient_checkpointing()
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in layers:
                p.copy_(torch.randn(p.shape, generator=g) * 0.1)
        z = torch.randn(1, 16, 8, 8, generator=g)
        model.predict(
            z, torch.tensor([500]), model.encode_prompt([words.expand("a photo of <rex>")])
        ).square().mean().backward()
        found.append([rows.grad, *(p.grad for p in layers)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and float(found[0][0].abs().max()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_on_a_processor(opened: Any, name: str) -> None:
    model = opened(name)
    given = (
        torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([500]),
        model.encode_prompt([PROMPT]).detach(),
    )
    with torch.no_grad():
        plain = model.predict(*given)
        precision.use_bf16_matmuls(model.denoiser)
        half = model.predict(*given)
    assert half.dtype == torch.float32 and 0 < float((half - plain).abs().max()) < 0.1 * float(plain.abs().max())
