"""Small image encoders and segmentation models of transformers in folders, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SIZE = 32
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": SIZE, "patch_size": 8}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"vocab_size": 40, "max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}


def _clip(transformers: Any) -> Any:
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    return transformers.CLIPModel(config)


def _sam(transformers: Any) -> Any:
    sizes = {"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "output_channels": 8}
    places = {"image_size": SIZE, "patch_size": 8, "window_size": 2, "global_attn_indexes": [1]}
    return transformers.SamVisionModel(transformers.SamVisionConfig(**sizes, **places, initializer_range=0.3))


MODELS = {
    "clip": _clip,
    "clip_vision": lambda t: t.CLIPVisionModel(t.CLIPVisionConfig(**VISION)),
    "siglip_vision": lambda t: t.SiglipVisionModel(t.SiglipVisionConfig(**VISION)),
    "vit": lambda t: t.ViTModel(t.ViTConfig(**VISION)),
    "vit_classifier": lambda t: t.ViTForImageClassification(t.ViTConfig(num_labels=3, **VISION)),
    "dinov2": lambda t: t.Dinov2Model(t.Dinov2Config(**VISION)),
    "dinov3": lambda t: t.DINOv3ViTModel(t.DINOv3ViTConfig(**VISION)),
    "sam": _sam,
}
"""Name → a function from the module transformers to a model of random weights."""


def write_encoder(folder: Path, name: str) -> Any:
    """The model ``name`` of ``MODELS`` in a folder, with its image processor; also returns it, in eval mode."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(1)  # not the seed with which an architecture is made
    model = MODELS[name](transformers).eval()
    model.save_pretrained(folder)
    crop = {"height": SIZE, "width": SIZE}
    transformers.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=crop).save_pretrained(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of letters, with the special tokens of ``TEXT``."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = {"[PAD]": 0, "[UNK]": 1, "[BOS]": 2, "[EOS]": 3} | {chr(97 + i): 4 + i for i in range(26)}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=12, **special)
    fast.save_pretrained(folder)


def change_config(folder: Path, **values: Any) -> None:
    """Write other values to the folder's ``preprocessor_config.json``."""
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write_segmenter(folder: Path) -> Any:
    """A SegFormer of three classes for images of 32×32, with its processor; also returns it."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(1)
    sizes = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    config = transformers.SegformerConfig(**sizes, sr_ratios=[4, 2, 1, 1], decoder_hidden_size=8, num_labels=3)
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    model.save_pretrained(folder)
    transformers.SegformerImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return model
