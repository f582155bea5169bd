"""Language models of transformers as a run sees them: one tensor in, logits out, padding without any influence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.types import MASKED


class LanguageModel(nn.Module):
    """Base: (B, 3, L) int64, rows of token numbers, attention mask and token types, padding at the end.

    Padding repeats the text's own tokens, embedded at their own places, and is masked as keys. What a real token
    becomes is what it is without padding, and every activation at padding is a copy of one at a real token: ranges,
    samples and block errors are those of the texts, each counting alike whatever its length [ours].

    Args:
        model: transformers' model for a task, with attention that adds its mask (``eager``).
        token_types: whether it reads them; DistilBERT does not.
    """

    def __init__(self, model: nn.Module, token_types: bool) -> None:
        super().__init__()
        self.model, self.token_types = model, token_types

    def run(self, tokens: Tensor) -> Any:
        """transformers' answer."""
        ids, mask, types = tokens.unbind(1)
        place = torch.arange(ids.shape[1], device=ids.device) % mask.sum(1, keepdim=True).clamp_min(1)
        more = {"token_type_ids": types.gather(1, place)} if self.token_types else {}
        added = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, MASKED)
        return self.model(
            input_ids=ids.gather(1, place), attention_mask=added[:, None, None], position_ids=place, **more
        )


class SequenceClassifier(LanguageModel):
    """A model of ``…ForSequenceClassification``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 3, L) int64 → logits (B, classes)."""
        logits: Tensor = self.run(tokens).logits
        return logits


class QuestionAnswerer(LanguageModel):
    """A model of ``…ForQuestionAnswering``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 3, L) int64 → (B, 2, L) logits of an answer's first and last token, ``MASKED`` at padding."""
        found = self.run(tokens)
        logits = torch.stack([found.start_logits, found.end_logits], 1)
        return logits.masked_fill(tokens[:, 1:2] == 0, MASKED)
