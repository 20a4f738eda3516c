"""Train the CLIP text encoder so that attributes of the words are linearly readable from its output.

Two outputs are supervised: the projected sentence vector, which CLIP compares with images, and the hidden
state of each noun, which the denoiser's cross-attention reads.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objtune_cli.toybox.captions import PATTERN_WORDS, PLACES, PLAIN_WORDS
from objtune_cli.toybox.recipe.dataset import HELD_BACK, ToyboxDataset
from objtune_cli.toybox.recipe.presets import Preset
from objtune_cli.toybox.recipe.train_loop import Plan, fit
from objtune_cli.toybox.recipe.warm_start import load_start
from objtune_cli.toybox.world import ACCESSORIES, BACKGROUNDS, CLASSES, COLOURS

SIZES = {
    "class": len(CLASSES), "colour": len(COLOURS), "second": len(COLOURS),
    "pattern": len(PATTERN_WORDS), "third": len(COLOURS), "accessory": len(ACCESSORIES),
}  # fmt: skip
NOISE = 0.06
"""Standard deviation of noise on token embeddings, so that embeddings between words are meaningful."""


def build_clip(preset: Preset, tokenizer):
    """An untrained `CLIPModel` of the preset's size for the tokenizer's vocabulary."""
    from transformers import CLIPConfig, CLIPModel

    shape = {
        "hidden_size": preset.width, "intermediate_size": 3 * preset.width,
        "num_attention_heads": preset.heads, "projection_dim": preset.width, "hidden_act": "quick_gelu",
    }  # fmt: skip
    special = {
        "vocab_size": len(tokenizer), "max_position_embeddings": preset.tokens,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(preset.seed)
    model = CLIPModel(CLIPConfig(
        text_config={**shape, **special, "num_hidden_layers": preset.depth},
        vision_config={**shape, "num_hidden_layers": preset.depth + 1, "image_size": preset.size, "patch_size": preset.patch},
        projection_dim=preset.width,
    ))  # fmt: skip
    with torch.no_grad():
        model.text_model.get_input_embeddings().weight.normal_(0, 0.3)
    return load_start(model, preset.start, "clip")


def parse(caption: str) -> tuple[list[dict[str, int]], int]:
    """Parse a caption: attributes of each object in order, and the background (or -1).

    A missing attribute has the index after the last one; a missing accessory is "none".
    """
    colours, patterns = list(COLOURS), {w: i for i, w in enumerate(PATTERN_WORDS.values())}
    objects: list[dict[str, int]] = []
    sizes: list[int] = []
    pattern, third, skip = SIZES["pattern"], -1, False
    for word in caption.split():
        if word == "with":
            skip = True
        elif word in colours:
            if skip:
                third = colours.index(word)
            else:
                sizes.append(colours.index(word))
        elif word in ACCESSORIES[1:] and objects:
            objects[-1] |= {"third": third, "accessory": ACCESSORIES.index(word)}
            skip = False
        elif word in patterns:
            pattern = patterns[word]
        elif word in CLASSES:
            sizes = (sizes + [SIZES["colour"]] * 2)[:2]
            objects.append({
                "class": CLASSES.index(word), "colour": sizes[0], "second": sizes[1], "pattern": pattern,
                "third": SIZES["third"], "accessory": 0,
            })  # fmt: skip
            sizes, pattern, skip = [], SIZES["pattern"], False
    place = next((i for i, b in enumerate(BACKGROUNDS) if any(caption.endswith(p) for p in PLACES[b])), -1)
    return objects, place


class Readout(nn.Module):
    """Linear heads on the sentence vector (two objects and the place) and on a noun's state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = {f"{slot}-{name}": n + 1 for slot in (0, 1) for name, n in SIZES.items()}
        self.sentence = nn.ModuleDict({k: nn.Linear(width, n) for k, n in sizes.items()})
        self.place = nn.Linear(width, len(BACKGROUNDS) + 1)
        self.noun = nn.ModuleDict({k: nn.Linear(width, n + 1) for k, n in SIZES.items()})
        self.slot = nn.Linear(width, 2)
        self.scale = nn.Parameter(torch.tensor(8.0))


class Corpus:
    """All distinct captions as token ids with their labels."""

    def __init__(self, texts: list[str], tokenizer, tokens: int, device: str) -> None:
        self.ids = tokenizer(
            texts, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt"
        ).input_ids
        parsed = [parse(t) for t in texts]
        self.place = torch.tensor([p if p >= 0 else len(BACKGROUNDS) for _, p in parsed], device=device)
        nothing = dict(SIZES)
        slots = [[*o, nothing, nothing][:2] for o, _ in parsed]
        self.attributes = {k: torch.tensor([[s[k] for s in pair] for pair in slots], device=device) for k in SIZES}
        nouns = torch.tensor([tokenizer(c).input_ids[1] for c in CLASSES])
        self.is_noun = torch.isin(self.ids, nouns)


def train(work: Path, preset: Preset, data: ToyboxDataset, tokenizer, device: str = "cpu"):
    """Train the text encoder and its projection inside a `CLIPModel`, without images."""
    texts = sorted({t for group in data.captions[:-HELD_BACK] for t in group})
    clip = build_clip(preset, tokenizer)
    corpus = Corpus(texts, tokenizer, preset.tokens, device)
    network = nn.ModuleDict(
        {"tower": clip.text_model, "projection": clip.text_projection, "readout": Readout(preset.width)}
    )
    fillers = torch.tensor([tokenizer(w).input_ids[1] for w in PLAIN_WORDS if w not in ("a", "an", "and", "with")])

    def losses(step: int, g: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(corpus.ids), (preset.text_batch,), generator=g)
        ids, nouns = _distract(corpus.ids[rows], corpus.is_noun[rows], fillers, tokenizer.eos_token_id, g)
        return _losses(network, corpus, rows.to(device), ids.to(device), nouns.to(device), g)

    fit("text", network, losses, Plan(preset.text_steps, preset.text_lr, seed=preset.seed), work, device=device)
    return clip


def _distract(ids: Tensor, nouns: Tensor, fillers: Tensor, eos: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Insert one meaningless token (a filler or a letter) into a third of the captions."""
    rows, length = ids.shape
    room = ids[:, -2] == eos
    distracted = room & (torch.rand(rows, generator=g) < 0.33)
    at = 1 + (torch.rand(rows, generator=g) * ((ids != eos).sum(1) - 1)).long()
    word = fillers[torch.randint(len(fillers), (rows,), generator=g)]
    letter = torch.randint(512, (rows,), generator=g)
    word = torch.where(torch.rand(rows, generator=g) < 0.5, word, letter)
    place = torch.arange(length)[None]
    source = torch.where(place > at[:, None], place - 1, place)
    moved = ids.gather(1, source).where(place != at[:, None], word[:, None])
    moved_nouns = nouns.gather(1, source) & (place != at[:, None])
    return torch.where(distracted[:, None], moved, ids), torch.where(distracted[:, None], moved_nouns, nouns)


def _losses(network, corpus: Corpus, rows: Tensor, ids: Tensor, nouns: Tensor, g: torch.Generator) -> dict[str, Tensor]:
    tower, readout = network["tower"], network["readout"]
    table = tower.get_input_embeddings()
    noise = NOISE * torch.randn(*ids.shape, table.weight.shape[1], generator=g).to(ids.device)
    hook = table.register_forward_hook(lambda _m, _i, out: out + noise)
    out = tower(input_ids=ids)
    hook.remove()
    vector = F.normalize(network["projection"](out.pooler_output), dim=-1) * readout.scale
    sentence = F.cross_entropy(readout.place(vector), corpus.place[rows])
    for slot in (0, 1):
        for name in SIZES:
            sentence = sentence + F.cross_entropy(
                readout.sentence[f"{slot}-{name}"](vector), corpus.attributes[name][rows, slot]
            )
    states = out.last_hidden_state[nouns]
    row, order = nouns.nonzero()[:, 0], (nouns.cumsum(1) - 1)[nouns].clamp_max(1)
    noun = F.cross_entropy(readout.slot(states), order)
    for name in SIZES:
        noun = noun + F.cross_entropy(readout.noun[name](states), corpus.attributes[name][rows[row], order])
    return {"sentence": sentence, "noun": noun}
