"""SAM 2.1 and SAM 3 of transformers' own classes with random weights, small enough for tests, saved as the hub has them."""

from pathlib import Path
from typing import Any

import torch

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before transformers asks for it)
from objtune_cli.models import registry

SIDE = 64
"""Side of the images that the tiny models take, px."""
SHARPNESS = 3e5
"""Factor of the mask logits, which random weights leave near 0."""
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def save_sam2(folder: Path, model_type: str = "sam2_video") -> Path:
    """A tiny SAM 2.1; the hub's folders say `sam2_video`, because they also have the weights for videos."""
    import json

    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2ImageProcessor,
        Sam2Model,
        Sam2Processor,
        Sam2VisionConfig,
    )

    torch.manual_seed(0)
    backbone = Sam2HieraDetConfig(
        hidden_size=8, image_size=[SIDE, SIDE], blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[4, 2, 2, 2], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=32,
        backbone_feature_sizes=[[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
    )  # fmt: skip
    prompt = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=DECODER)
    model = Sam2Model(config)
    for mlp in model.mask_decoder.output_hypernetworks_mlps:
        mlp.proj_out.weight.data *= SHARPNESS
        mlp.proj_out.bias.data *= SHARPNESS
    model.save_pretrained(folder)
    Sam2Processor(Sam2ImageProcessor(size={"height": SIDE, "width": SIDE})).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": model_type}))
    return folder


def save_sam3(folder: Path) -> Path:
    """A tiny SAM 3 as the hub has it: detector and tracker in one model for videos."""
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTokenizer, Sam3ImageProcessor, Sam3Processor, Sam3VideoConfig, Sam3VideoModel

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(registry.TOYBOX_FOLDER / "tokenizer")
    tokenizer.model_max_length = 32
    patch, cells = 8, SIDE // 8
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    vision = {
        "backbone_config": {
            **sizes, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": patch, "window_size": 4, "global_attn_indexes": [1], "pretrain_image_size": 32,
            "model_type": "sam3_vit_model",
        },
        "fpn_hidden_size": 32, "backbone_feature_sizes": [[cells * 4] * 2, [cells * 2] * 2, [cells] * 2],
    }  # fmt: skip
    detr = {**sizes, "num_layers": 1}
    config = Sam3VideoConfig(
        detector_config={
            "model_type": "sam3",
            "vision_config": {**vision, "model_type": "sam3_vision_model"},
            "text_config": {
                **sizes, "model_type": "clip_text_model", "vocab_size": 49408, "num_hidden_layers": 1, "max_position_embeddings": 32, "projection_dim": 16,
                "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            },
            "geometry_encoder_config": detr, "detr_encoder_config": detr, "detr_decoder_config": {**detr, "num_queries": 6},
            "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
        },
        tracker_config={
            "model_type": "sam3_tracker_video",
            "vision_config": {**vision, "model_type": "sam3_vision_model"},
            "prompt_encoder_config": {"hidden_size": 32, "image_size": SIDE, "patch_size": patch},
            "mask_decoder_config": DECODER, "image_size": SIDE,
            "memory_attention_hidden_size": 32, "memory_attention_num_attention_heads": 1, "memory_attention_downsample_rate": 1, "memory_attention_feed_forward_hidden_size": 32,
            "memory_attention_num_layers": 1, "memory_attention_rope_feat_sizes": [cells, cells], "memory_encoder_hidden_size": 32, "memory_encoder_output_channels": 16,
            "mask_downsampler_embed_dim": 32, "memory_fuser_embed_dim": 32, "memory_fuser_intermediate_dim": 32,
        },
    )  # fmt: skip
    Sam3VideoModel(config).save_pretrained(folder)
    path = folder / "model.safetensors"  # this version saves the tracker's prefix twice; the hub's file has it once
    state = {key.replace("tracker_model.tracker_model.", "tracker_model."): t for key, t in load_file(path).items()}
    save_file(state, path, {"format": "pt"})
    Sam3Processor(Sam3ImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer).save_pretrained(folder)
    return folder


def save_salient(folder: Path, *, ends_in_sigmoid: bool = False, channels: int = 1) -> Path:
    """A salient-object network in ONNX as the hub has it: pixels are salient that differ from the mean colour of the border.

    Args:
        ends_in_sigmoid: Whether it returns probabilities, as IS-Net does, or logits, as BiRefNet. channels: Number of its maps.
    """
    import json

    import onnx
    from onnx import TensorProto, helper

    def constant(name: str, values: list[int]) -> Any:
        return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)

    gain = helper.make_tensor("gain", TensorProto.FLOAT, [], [20.0])
    shift = helper.make_tensor("shift", TensorProto.FLOAT, [], [-2.0])
    node = helper.make_node
    nodes = [
        node("Slice", ["image", "start", "end", "columns"], ["left"]),
        node("ReduceMean", ["left", "sides"], ["ground"], keepdims=1),
        node("Sub", ["image", "ground"], ["difference"]),
        node("Mul", ["difference", "difference"], ["square"]),
        node("ReduceSum", ["square", "colors"], ["distance"], keepdims=1),
        node("Mul", ["distance", "gain"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["logits"]),
        node("Concat", ["logits"] * channels, ["maps"], axis=1),
        node("Sigmoid" if ends_in_sigmoid else "Identity", ["maps"], ["output"]),
    ]
    initializers = [
        gain, shift, constant("start", [0]), constant("end", [4]), constant("columns", [3]), constant("sides", [2, 3]), constant("colors", [1]),
    ]  # fmt: skip
    shape = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "salient",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", channels, "height", "width"])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (folder / "onnx").mkdir(parents=True)
    onnx.save(model, folder / "onnx/model.onnx")
    preprocessing = {
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "rescale_factor": 1 / 255,
        "size": {"height": 256, "width": 256},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    (folder / "config.json").write_text('{"model_type": "BiRefNet"}')
    return folder
