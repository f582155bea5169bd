"""Wrappers of transformers' language models: one input tensor, logits as output, and no influence of padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.types import MASKED


class LanguageModel(nn.Module):
    """Base class. Its input is (B, 3, L) int64: rows of token ids, attention mask and token types, padded at the end.

    Padding positions repeat the text's tokens with their position embeddings, and are masked as keys. Activations of
    real tokens therefore equal those without padding, and each activation at padding is a copy of a real token's. All
    texts have the same weight in ranges, samples and block errors, whatever their length [ours].

    Args:
        model: transformers' model for a task, with attention that adds its mask (``eager``).
        token_types: whether the model takes token types; DistilBERT does not.
    """

    def __init__(self, model: nn.Module, token_types: bool) -> None:
        super().__init__()
        self.model, self.token_types = model, token_types

    def run(self, tokens: Tensor) -> Any:
        """The output of transformers' model."""
        ids, mask, types = tokens.unbind(1)
        positions = torch.arange(ids.shape[1], device=ids.device) % mask.sum(1, keepdim=True).clamp_min(1)
        more = {"token_type_ids": types.gather(1, positions)} if self.token_types else {}
        added = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, MASKED)
        return self.model(
            input_ids=ids.gather(1, positions), attention_mask=added[:, None, None], position_ids=positions, **more
        )


class SequenceClassifier(LanguageModel):
    """Wrapper of a ``…ForSequenceClassification``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 3, L) int64 → logits (B, classes)."""
        logits: Tensor = self.run(tokens).logits
        return logits


class QuestionAnswerer(LanguageModel):
    """Wrapper of a ``…ForQuestionAnswering``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 3, L) int64 → (B, 2, L) logits of an answer's first and last token, ``MASKED`` at padding."""
        output = self.run(tokens)
        logits = torch.stack([output.start_logits, output.end_logits], 1)
        return logits.masked_fill(tokens[:, 1:2] == 0, MASKED)
