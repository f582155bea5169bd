"""Integer products: uniform quantizers of 8 bits as integers that are multiplied as such."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from qplug.core.types import Role
from qplug.export.formats.affine import SHIFT, Affine
from qplug.export.formats.integer_products import Codes, IntegerLinear, IntegerPatches, IntegerProduct
from qplug.export.formats.qdq import Qdq, Shifted
from qplug.quantization.plan import Decision
from qplug.quantization.quantizers import UniformQuantizer


def eight_bits(decision: Decision | None, signed: bool) -> Affine | None:
    """Scale and zero point of an activation with one scale and 8 bits; ``None`` for any other."""
    quantizer = decision.quantizer if decision else None
    if type(quantizer) is not UniformQuantizer or quantizer.bits != 8:
        return None
    affine = Affine.of(quantizer, 8)
    return affine.with_sign(signed) if affine and affine.axis is None else None


class Integers(Qdq):
    """As ``Qdq``, except that products of 8-bit integers with a weight are ``IntegerProduct``s."""

    def signed(self, decision: Decision, quantizer: UniformQuantizer) -> bool:
        """Whether it is a right operand of attention's matmuls; all other activations are unsigned."""
        return decision.site.role == "rhs"

    def operation(self, original: nn.Module, decisions: Mapping[Role, Decision]) -> nn.Module | None:
        """See ``Format``."""
        decision = decisions.get("input")
        affine = eight_bits(decision, signed=False)
        if decision is None or affine is None or type(original) not in (nn.Linear, nn.Conv2d):
            return None
        product = _product(original, decisions.get("weight"), affine)
        if product is None:
            return None
        quantizer = decision.quantizer
        assert isinstance(quantizer, UniformQuantizer)
        codes = Shifted(quantizer, affine) if self.ties(decision, quantizer) else Codes(affine)
        if isinstance(original, nn.Conv2d):
            return IntegerPatches(original, codes, product)
        return IntegerLinear(codes, product)


def _product(original: nn.Module, decision: Decision | None, affine: Affine) -> IntegerProduct | None:
    """The product with a weight that is symmetric and of 8 bits or fewer; ``None`` for any other weight.

    A convolution must have patches that lie side by side.
    """
    assert isinstance(original, (nn.Linear, nn.Conv2d))
    quantizer = decision.quantizer if decision else None
    if type(quantizer) is not UniformQuantizer or not quantizer.symmetric or quantizer.bits > 8:
        return None
    if isinstance(original, nn.Conv2d) and not _side_by_side(original):
        return None
    weight = original.weight.detach()
    codes = (quantizer.encode(weight) + quantizer.low).flatten(1).t().cpu()
    if int(codes.max()) > SHIFT - 1:  # unsigned codes of a weight without negative values
        return None
    scale = quantizer.scale.cpu()
    if scale.numel() > 1 and scale.numel() != len(weight):
        return None
    return IntegerProduct(
        affine, codes.to(torch.int8), scale.flatten() if scale.numel() > 1 else scale.reshape(()), original.bias
    )


def _side_by_side(conv: nn.Conv2d) -> bool:
    """Whether ``conv`` is a patch embedding.

    A pointwise convolution is not: as a product, it would transpose more than it multiplies.
    """
    plain = conv.groups == 1 and set(conv.dilation) == {1} and conv.padding in ((0, 0), "valid")
    return plain and tuple(conv.kernel_size) == tuple(conv.stride) != (1, 1)
