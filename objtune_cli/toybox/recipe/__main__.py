"""`python -m objtune_cli.toybox.recipe PART --preset cpu --work DIR`: train the base from scratch."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before transformers asks for it)
from objtune_cli.models.registry import TOYBOX_FOLDER
from objtune_cli.toybox.recipe import (
    clip_cutouts,
    clip_text,
    clip_vision,
    comparison,
    dataset,
    denoiser,
    evaluator,
    samples,
    save_pipeline,
    segmenter,
    tokenizer,
)
from objtune_cli.toybox.recipe import vae as autoencoder
from objtune_cli.toybox.recipe.presets import PRESETS, Preset

PARTS = (
    "data", "text", "vae", "vision", "denoiser", "publish", "all",
    "decoder", "compare", "sheet", "cutouts", "evaluator", "segmenter",
)  # fmt: skip


def main() -> None:
    """Run one part, or all; each resumes from the state in the work folder."""
    parser = argparse.ArgumentParser(prog="python -m objtune_cli.toybox.recipe", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--work", type=Path, default=Path("toybox-work"), help="Folder for data, states and samples.")
    parser.add_argument("--steps", type=int, help="Steps of this part in place of the preset's.")
    parser.add_argument(
        "--start", default="", help="A published base to grow from; one of the same dial is trained further."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="Default: cuda for the gpu preset.")
    parser.add_argument("--seconds", type=float, default=480.0, help="Processor seconds of each variant of `compare`.")
    parser.add_argument("--threads", type=int, help="CPU threads.")
    parser.add_argument("--out", type=Path, help="Where `publish` writes the base.")
    parser.add_argument("--commit", default="", help="Commit of the recipe, kept beside the weights.")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    preset = continued(replace(PRESETS[args.preset], start=args.start))
    if args.part == "sheet":
        sheet(args.out or TOYBOX_FOLDER, preset, args.work)
        return
    if args.steps:
        preset = replace(preset, **{f"{args.part}_steps": args.steps})
    run(args.part, preset, args)


def continued(preset: Preset) -> Preset:
    """The preset without training of the text encoder and the VAE, where its start is of the same dial and has the latents already."""
    record = Path(preset.start) / "toybox.json" if preset.start else None
    if record is None or not record.exists() or json.loads(record.read_bytes())["dial"] != preset.dial:
        return preset
    return replace(preset, text_steps=0, vae_steps=0)


def run(part: str, preset: Preset, args: argparse.Namespace) -> None:
    """Load what the part needs, train it, print samples."""
    work: Path = args.work
    if part in ("publish", "compare"):  # with the present state of each part
        needed = ("text", "vae", "denoiser") if part == "publish" else ("text", "vae")
        missing = [p for p in needed if not (work / f"{p}.safetensors").exists()]
        if missing:
            raise SystemExit(f"error: {work} contains no trained {', '.join(missing)}")
        preset = replace(preset, text_steps=0, vae_steps=0, vision_steps=0, denoiser_steps=0, decoder_steps=0)
    device = args.device or ("cuda" if args.preset == "gpu" else "cpu")
    if part in ("cutouts", "evaluator", "segmenter"):
        _train_separately(part, preset, args, device)
        return
    shards = dataset.load_or_render(work, preset, processes=_processes(args))
    words = tokenizer.load_or_build(work, preset.tokens)
    if part == "data":
        return
    if part == "vae":
        autoencoder.train(work, preset, shards, device)
        return
    clip = clip_text.train(work, preset, shards, words, device)
    if part == "text":
        return
    if part == "vision":
        clip_vision.train(work, preset, shards, words, clip, device)
        return
    vae = autoencoder.train(work, preset, shards, device)
    if part == "compare":
        comparison.run(work, preset, shards, words, clip, vae, args.seconds, device)
        return
    vae = autoencoder.train_decoder(work, preset, shards, vae, device)
    if part == "decoder":
        return

    def sample(unet, step: int) -> None:
        pipe = save_pipeline.build_pipeline(words, clip, vae, unet).to(unet.device)
        sheet_images = samples.draw(
            pipe, samples.prompts(preset.world, 24), preset.size, 15, save_pipeline.SAMPLING["guidance_scale"]
        )
        samples.sheet(sheet_images, 8, work / "samples" / f"{step:06d}.png")

    unet = denoiser.train(work, preset, shards, words, clip, vae, sample, device)
    vae.to("cpu")
    if part in ("publish", "all"):
        clip_vision.train(work, preset, shards, words, clip, device)
        save_pipeline.publish(
            args.out or work / "base", f"toybox-{args.preset}", preset, words, clip, vae, unet, args.commit
        )


def _processes(args: argparse.Namespace) -> int:
    return args.threads or os.cpu_count() or 2


def _train_separately(part: str, preset: Preset, args: argparse.Namespace, device: str) -> None:
    """Train a part that no other part needs; it renders its own data."""
    measures: dict[str, float]
    if part == "evaluator":
        judge = evaluator.train(args.work, preset, device, _processes(args))
        evaluator.publish(judge, args.out or args.work / "evaluator-weights.safetensors", preset, args.commit)
        measures = evaluator.evaluate(judge, preset)
    elif part == "cutouts":
        measures = _adapt_clip(args, preset, device)
    else:
        network = segmenter.train(args.work, preset, device)
        segmenter.publish(network, args.out or args.work / "segmenter", preset, args.commit)
        measures = segmenter.evaluate(network, preset)
    for name, value in measures.items():
        print(f"{part}: {name} {value:.3f}", flush=True)


def _adapt_clip(args: argparse.Namespace, preset: Preset, device: str) -> dict[str, float]:
    """Adapt the CLIP vision encoder of a published base to cut-outs and write it to `--out` (default: the embedded base)."""
    from transformers import CLIPModel, CLIPTokenizer

    folder = args.out or TOYBOX_FOLDER
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    clip = CLIPModel.from_pretrained(folder / "clip", local_files_only=True)
    for name, value in clip_cutouts.evaluate(clip.eval(), words, preset).items():
        print(f"cutouts: before: {name} {value:.3f}", flush=True)
    args.work.mkdir(parents=True, exist_ok=True)
    clip_cutouts.train(args.work, preset, words, clip, device)
    clip_cutouts.publish(clip, folder, args.commit, preset.cutouts_steps)
    return clip_cutouts.evaluate(clip, words, preset)


def sheet(folder: Path, preset: Preset, work: Path) -> None:
    """Sample 64 images of a published base with plain diffusers; `objtune bench base` measures them."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    images = samples.draw(
        pipe,
        samples.prompts(preset.world),
        preset.size,
        int(save_pipeline.SAMPLING["num_inference_steps"]),
        save_pipeline.SAMPLING["guidance_scale"],
    )
    samples.sheet(images, 8, work / "samples.png", scale=1)
    print(f"{work / 'samples.png'}: 64 samples", flush=True)


if __name__ == "__main__":
    main()
