"""torch's ``nn.TransformerEncoder`` and its layers without the fused kernels, which take weights past their modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from qplug.core.errors import EquivalenceError
from qplug.models.equivalence import LARGEST_CHANGE, EquivalenceCheck
from qplug.models.surgery import replace

ACTIVATIONS: dict[Any, type[nn.Module]] = {F.relu: nn.ReLU, F.gelu: nn.GELU}
"""Functions that the layers of torch's transformers call, with their modules."""


class PaddedEncoder(nn.TransformerEncoder):
    """Replaces an ``nn.TransformerEncoder`` with nested tensors: it sets padded positions to 0, as that one does.

    torch removes padding from a batch, calls fused kernels, and pads with zeros before the last norm. It does so only
    if no sequence of the batch has a token behind padding.
    """

    def __init__(self, original: nn.TransformerEncoder) -> None:
        nn.Module.__init__(self)
        self.layers, self.num_layers = original.layers, original.num_layers
        self.norm, self.last_norm = None, original.norm
        self.enable_nested_tensor = self.use_nested_tensor = False

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """See ``nn.TransformerEncoder``; src: (B, N, C), src_key_padding_mask: (B, N) → (B, N, C)."""
        out = super().forward(src, mask, src_key_padding_mask, is_causal)
        if src_key_padding_mask is not None and mask is None and src.dim() == 3 and not self.training:
            padding = src_key_padding_mask != 0
            aligned = (padding[:, 1:] >= padding[:, :-1]).all()
            out = out.masked_fill((padding & aligned).unsqueeze(-1), 0.0)
        return out if self.last_norm is None else self.last_norm(out)


def _nests(module: nn.Module) -> bool:
    """Whether an encoder makes nested tensors of padded batches; encoders of old checkpoints lack the attribute."""
    return isinstance(module, nn.TransformerEncoder) and bool(getattr(module, "use_nested_tensor", False))


def _fuses(module: nn.Module) -> bool:
    """Whether a layer may call a fused kernel, or calls its activation as a function."""
    if not isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        return False
    return module.activation in ACTIVATIONS or bool(getattr(module, "activation_relu_or_gelu", False))


def without_fused_kernels(model: nn.Module, image: Tensor) -> None:
    """Let encoders and layers of ``nn.Transformer`` call their submodules, in place and in every mode; subclasses too.

    Functions among the activations become modules, so that their outputs have a kind.

    Args:
        model: the float model in eval mode.
        image: a batch of one, on which the model is checked.

    Raises:
        EquivalenceError: the outputs changed by more than 1e-4 of their norm.
    """
    fused: list[Any] = [module for module in model.modules() if _nests(module) or _fuses(module)]
    if not fused:
        return
    check = EquivalenceCheck(model, image)
    for module in fused:
        if isinstance(module, nn.TransformerEncoder):
            if type(module).forward is nn.TransformerEncoder.forward and module is not model:
                replace(model, module, PaddedEncoder(module).eval())
            module.use_nested_tensor = False
            continue
        if module.activation in ACTIVATIONS:
            module.activation = ACTIVATIONS[module.activation]()
        module.activation_relu_or_gelu = 0  # a condition of the fused kernel, which nothing else reads
    error = check.error()
    if not error <= LARGEST_CHANGE:
        raise EquivalenceError(
            f"without torch's fused kernels the outputs move by {error:.1e} of their norm, above {LARGEST_CHANGE:.0e}",
            where=type(fused[0]).__name__,
            fix="call torch.backends.mha.set_fastpath_enabled(False) where the model is made",
        )
