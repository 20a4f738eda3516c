"""The sheet that `train` leaves beside an adapter: what a person looks at first."""

from pathlib import Path

from objtune_cli.stages import objects, subjects
from objtune_cli.stages.context import Context, keep_picture
from objtune_cli.store import artifact, pictures
from objtune_cli.store.artifact import Record

PLACES = ("on the beach", "in the snow", "at night", "in the desert")


def draw(ctx: Context, record: Record, starts: list[Record]) -> Path:
    """Photo, the objects in scenes they were not in, and their class as the base still draws it."""
    import torch

    from objtune_cli.method import sampling
    from objtune_cli.models import adapter
    from objtune_cli.models.stack import at_once
    from objtune_cli.numerics import placement

    found = [objects.Named(name, record, artifact.sha256(record.ref.path(ctx.root))) for name in record.objects]
    weights = {item.name: objects.tensors(ctx, item) for item in found}
    stack = ctx.stack()
    words = objects.add_words(stack, found, weights)
    adapter.load(stack, weights[found[0].name])
    subject = subjects.subject(ctx, starts[-1], subjects.hidden(ctx, starts[-1:]))
    photo, _ = placement.views(
        subject.picture, subject.mask, subject.ground, 1, stack.size, torch.Generator().manual_seed(0)
    )
    named = " and ".join(f"<{item.name}>" for item in found)
    plain = " and ".join(f"a {word}" for word in record.objects.values())
    prompts = [words.expand(f"a photo of {named} {place}") for place in PLACES] + [f"a photo of {plain} {PLACES[0]}"]
    shown, step, size = [photo], ctx.progress("preview"), at_once(stack.size, stack.size)
    for at in range(0, len(prompts), size):
        part = prompts[at : at + size]
        latents = sampling.sample(
            stack, part, "", list(range(at, at + len(part))), **ctx.base.drawn(), **ctx.base.of_objects()
        )
        shown.append(stack.to_picture(latents).cpu())
        step(at + len(part), len(prompts))
    rgb = sampling.to_uint8(torch.cat(shown)).numpy()
    flat = sum(pictures.is_one_colour(picture) for picture in rgb[1:])
    if flat:
        ctx.report.note(
            f"{flat} of {len(prompts)} preview pictures are of one colour: another `--base`, or its VAE, may be at fault"
        )
    scale = max(1, 192 // rgb.shape[1])
    return keep_picture(ctx.root, record.ref, "preview.png", pictures.png(pictures.grid(rgb, 3, scale=scale)))
