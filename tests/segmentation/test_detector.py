"""A detector of random weights in OWLv2's layout: words in, boxes within the picture out; nothing is downloaded."""

from pathlib import Path

import numpy as np
import pytest

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before transformers asks for it)
from objtune_cli.errors import ResourceError
from objtune_cli.models import registry
from objtune_cli.segmentation import detector
from objtune_cli.segmentation.detector import Detector


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("owl")
    tokenizer = CLIPTokenizer.from_pretrained(registry.TOYBOX_FOLDER / "tokenizer")
    tokenizer.model_max_length = 16
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={**sizes, "vocab_size": 49408, "max_position_embeddings": 16, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id},
        vision_config={**sizes, "image_size": 64, "patch_size": 16}, projection_dim=32,
    )  # fmt: skip
    model = Owlv2ForObjectDetection(config)
    for p in model.box_head.dense2.parameters():
        torch.nn.init.zeros_(p)  # each patch answers with its own place
    model.save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)
    return folder


def test_boxes_of_words_lie_in_the_picture(owl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "THRESHOLD", 0.0)  # random weights are sure of nothing
    rgb = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    found = Detector(str(owl)).detect(rgb, ["dog", "mug"])
    assert found and {d.word for d in found} <= {"dog", "mug"}
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    for d in found:
        x0, y0, x1, y1 = d.box
        assert 0 <= x0 < x1 <= 80 and 0 <= y0 < y1 <= 48


def test_a_detector_that_is_not_here_says_how_to_bring_it(tmp_path: Path) -> None:
    for model in ("google/owlv2-base-patch16-ensemble", str(tmp_path)):
        with pytest.raises(ResourceError, match="cannot be opened") as caught:
            Detector(model)
        assert "hf download" in caught.value.hint
