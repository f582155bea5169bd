"""Wrapper of transformers' image encoders: one image tensor in, features out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.task import Features
from qplug.core.text import listed

FIRST_TOKEN = "first_token"
"""Name of the first token of ``last_hidden_state``: the class token of ViT, CLIP and DINOv2."""


class ImageEncoder(nn.Module):
    """Images (B, C, H, W) float32 → features: (B, C), (B, tokens, C) or (B, C, H, W).

    Args:
        model: transformers' encoder.
        output: the field of its outputs to read, or ``first_token``; the first of ``Features.named`` if ``None``.
    """

    def __init__(self, model: nn.Module, output: str | None = None) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, images: Tensor) -> Tensor:
        """The features; raises ``InputError`` if the model does not return ``output``."""
        outputs: Any = self.model(pixel_values=images)
        held = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
        wanted = [self.output] if self.output is not None else Features.named
        if FIRST_TOKEN in wanted:
            tokens = held.get("last_hidden_state")
            if tokens is None or tokens.dim() != 3:
                raise _without(FIRST_TOKEN, held)
            return tokens[:, 0]
        found = next((held[name] for name in wanted if name in held), None)
        if found is None:
            raise _without(wanted[0], held)
        return found


def _without(wanted: str, held: dict[str, Tensor]) -> InputError:
    shapes = listed((f"{name} {tuple(value.shape)}" for name, value in held.items()), 6)
    return InputError(
        f"the model returns no {wanted}; it returns {shapes}",
        where="model.output",
        fix="set model.output to one of these",
    )
