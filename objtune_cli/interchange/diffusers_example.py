"""Example code for a model card: load an exported object in diffusers and sample it."""

from collections.abc import Sequence

from objtune_cli.lora import file_names
from objtune_cli.models.families import Family


def write_example(family: Family, base: str, name: str, class_word: str, embedding: str) -> list[str]:
    """Lines of Python that run in the folder of the exported files.

    Args:
        base: Hub repository or folder of the base model.
        name: Name of the object; its token is `<name>`.
        embedding: Name of its embedding file, without the suffix.
    """
    if family.reads_with_language_model:
        return _language_model_lines(family, base, name, embedding)
    if "text_encoder_3" in family.parts:
        return _sd3_lines(family, base, name, class_word, embedding)
    lines = [
        f"from diffusers import {family.pipeline}",
        "",
        f'pipe = {family.pipeline}.from_pretrained("{base}")',
        'pipe.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")',
    ]
    keys = file_names.of_family(family).embedding_keys
    if keys:
        end = "pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id"
        lines = ["from safetensors.torch import load_file", *lines, *_embedding_lines(keys, name, embedding)]
        lines.append(f"{end}  # the sentence is read at its end, not at the largest id")
    else:
        lines.append(f'pipe.load_textual_inversion("embeddings/{embedding}.safetensors")')
    return [*lines, f'picture = pipe("a photo of <{name}> on the beach").images[0]']


def _embedding_lines(keys: Sequence[str], name: str, embedding: str) -> list[str]:
    """Load the token's vectors into each of two text encoders."""
    encoder = "pipe.text_encoder{0}, tokenizer=pipe.tokenizer{0}"
    return [
        f'words = load_file("embeddings/{embedding}.safetensors")',
        *(
            f'pipe.load_textual_inversion(words["{key}"], token="<{name}>", text_encoder={encoder.format(suffix)})'
            for key, suffix in zip(keys, ("", "_2"), strict=True)
        ),
    ]


def _sd3_lines(family: Family, base: str, name: str, class_word: str, embedding: str) -> list[str]:
    """The SD 3 pipeline has no textual inversion of its own, and T5 reads the class word."""
    keys = file_names.of_family(family).embedding_keys
    return [
        f"from diffusers import {family.pipeline}",
        "from diffusers.loaders import TextualInversionLoaderMixin",
        "from safetensors.torch import load_file",
        "",
        "",
        f"class Pipeline(TextualInversionLoaderMixin, {family.pipeline}):",
        '    """With words of its own."""',
        "",
        "",
        f'pipe = Pipeline.from_pretrained("{base}")',
        'pipe.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")',
        *_embedding_lines(keys, name, embedding),
        "for encoder in (pipe.text_encoder, pipe.text_encoder_2):  # the sentence is read at its end, not at the largest id",
        "    encoder.text_model.eos_token_id = pipe.tokenizer.eos_token_id",
        f'prompt = pipe.maybe_convert_prompt("a photo of <{name}> on the beach", pipe.tokenizer)',
        f'picture = pipe(prompt, prompt_3="a photo of a {class_word} on the beach").images[0]',
    ]


def _language_model_lines(family: Family, base: str, name: str, embedding: str) -> list[str]:
    """Pipelines with a language model have no textual inversion of their own, and no space may stand before a token."""
    return [
        f"from diffusers import {family.pipeline}",
        "from diffusers.loaders import TextualInversionLoaderMixin",
        "",
        "",
        f"class Pipeline(TextualInversionLoaderMixin, {family.pipeline}):",
        '    """With words of its own."""',
        "",
        "",
        f'pipe = Pipeline.from_pretrained("{base}")',
        'pipe.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")',
        f'pipe.load_textual_inversion("embeddings/{embedding}.safetensors", token="<{name}>")',
        f'tokens = [word for word in pipe.tokenizer.get_added_vocab() if word.startswith("<{name}>")]',
        'token = "".join(sorted(tokens, key=lambda word: (len(word), word)))  # no spaces before or between them',
        'picture = pipe(f"a photo of{token} on the beach").images[0]',
    ]
