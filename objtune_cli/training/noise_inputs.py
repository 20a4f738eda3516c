"""Objects and class priors of noise, on which `train --dry-run` and `bench speed` and `bench memory` measure steps."""

from typing import TYPE_CHECKING

from objtune_cli.store.kinds.prior import PriorArtifact

if TYPE_CHECKING:
    import torch

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.training.subjects import Subject


def noise_subjects(model: "BaseModel", num_vectors: int, count: int) -> list["Subject"]:
    """Return `count` objects of the class dog in one image of noise, each with a token of `num_vectors` vectors."""
    import torch

    from objtune_cli.models.placeholders import class_token_embeddings
    from objtune_cli.training.subjects import Subject, SubjectPhoto

    generator = torch.Generator().manual_seed(0)
    image = torch.rand((3, model.resolution, model.resolution), generator=generator) * 2 - 1
    class_embeddings = class_token_embeddings(model, "dog").cpu()
    embeddings = torch.cat([class_embeddings[:1].repeat(num_vectors, 1), class_embeddings])
    photos = [SubjectPhoto(image, image.flip(-1), _mask(model.resolution, i, count)) for i in range(count)]
    return [Subject(f"it{i}", "dog", embeddings, num_vectors, (photo,)) for i, photo in enumerate(photos)]


def _mask(side: int, index: int, count: int) -> "torch.Tensor":
    """Return the mask of one of `count` objects, which divide the middle quarter of the image from left to right."""
    import torch

    margin, width = side // 4, side // 2 // count
    mask = torch.zeros(side, side)
    mask[margin:-margin, margin + index * width : margin + (index + 1) * width] = 1
    return mask


def noise_prior(model: "BaseModel", num_predictions: int) -> PriorArtifact:
    """Return a class prior of noise with so many teacher predictions."""
    import torch

    side = model.resolution // model.vae_scale_factor
    shape = (3, num_predictions, model.latent_channels, side, side)
    latents, noisy_latents, predictions = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        conditions = model.encode_prompt(["a photo of a dog"]).pack().float().cpu()
    timesteps = torch.linspace(100, 900, num_predictions).long()
    prompt_index = torch.zeros(num_predictions, dtype=torch.int64)
    return PriorArtifact(latents, noisy_latents, timesteps, predictions, prompt_index, conditions)
