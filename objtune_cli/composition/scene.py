"""A scene to compose: prompt, objects, layout and settings."""

from collections.abc import Sequence
from dataclasses import dataclass

from objtune_cli.composition.layout import Layout
from objtune_cli.config.sections import Compose, Generate
from objtune_cli.generation.extra_loras import ExtraLora
from objtune_cli.workflow import prompt_request, trained_objects


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene to sample.

    Attributes:
        prompt: The prompt as the record has it.
        request: The request with a name for every mention of an object.
        objects: One for every mention, in the order of mention.
        config: Settings of sampling, nothing left to the base.
        options: Settings of composition.
        loras: LoRAs that act on the whole image, beside the objects.
    """

    prompt: str
    request: prompt_request.PromptRequest
    layout: Layout
    config: Generate
    options: Compose
    loras: Sequence[ExtraLora] = ()

    @property
    def objects(self) -> list[trained_objects.PromptObject]:
        return self.request.named[0]
