"""Adapters: a table from module types to equivalent modules that can be quantized, with a check of equivalence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from qplug.core.types import Adapter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qplug.models.replacement import Call


def _attention(module: nn.Module) -> nn.Module:
    from qplug.models.attention import ExplicitAttention

    return ExplicitAttention(module).eval()


def _window_attention(module: nn.Module) -> nn.Module:
    from qplug.models.attention import ExplicitWindowAttention

    return ExplicitWindowAttention(module).eval()


def _padded_conv(module: nn.Module) -> nn.Module:
    from torch.nn import Conv2d

    from qplug.models.layers import padded_conv

    assert isinstance(module, Conv2d)
    return padded_conv(module).eval()


def _linear(module: nn.Module) -> nn.Module:
    from torch.nn import Linear

    from qplug.models.layers import linear

    assert isinstance(module, Linear)
    return linear(module).eval()


def _standardized(module: nn.Module) -> nn.Module:
    from qplug.models.layers import standardized_conv

    return standardized_conv(module).eval()


def _blur(module: nn.Module) -> nn.Module | None:
    from qplug.models.layers import blur

    made = blur(module)
    return None if made is None else made.eval()


def _sequence_conv(module: nn.Module) -> nn.Module:
    from torch.nn import Conv1d

    from qplug.models.convolutions import sequence_conv

    assert isinstance(module, Conv1d)
    return sequence_conv(module).eval()


def _transposed_conv(module: nn.Module) -> nn.Module | None:
    from torch.nn import ConvTranspose2d

    from qplug.models.convolutions import transposed_conv

    assert isinstance(module, ConvTranspose2d)
    made = transposed_conv(module)
    return None if made is None else made.eval()


def _lstm(module: nn.Module) -> nn.Module | None:
    from torch.nn import LSTM

    from qplug.models.recurrent import ExplicitLSTM

    assert isinstance(module, LSTM)
    return None if module.proj_size else ExplicitLSTM(module).eval()


def _bert(module: nn.Module) -> nn.Module | None:
    from qplug.models.attention import ExplicitSelfAttention

    if module.is_decoder:
        return None
    return ExplicitSelfAttention(module, ("query", "key", "value")).eval()


def _distilbert(module: nn.Module) -> nn.Module:
    from qplug.models.attention import ExplicitSelfAttention

    return ExplicitSelfAttention(module, ("q_lin", "k_lin", "v_lin", "out_lin")).eval()


def _multihead_attention(module: nn.Module) -> nn.Module:
    from torch.nn import MultiheadAttention

    from qplug.models.multihead_attention import ExplicitMultiheadAttention

    assert isinstance(module, MultiheadAttention)
    return ExplicitMultiheadAttention(module).eval()


ADAPTERS = [
    Adapter("timm.layers.attention:Attention", _attention),
    Adapter("timm.models.swin_transformer:WindowAttention", _window_attention),
    Adapter("timm.layers.conv2d_same:Conv2dSame", _padded_conv),
    Adapter("timm.layers.conv2d_same:Conv2dSameExport", _padded_conv),
    Adapter("timm.layers.linear:Linear", _linear),
    Adapter("timm.layers.std_conv:StdConv2d", _standardized),
    Adapter("timm.layers.std_conv:StdConv2dSame", _standardized),
    Adapter("timm.layers.std_conv:ScaledStdConv2d", _standardized),
    Adapter("timm.layers.std_conv:ScaledStdConv2dSame", _standardized),
    Adapter("timm.layers.blur_pool:BlurPool2d", _blur),
    Adapter("torch.nn.modules.conv:Conv1d", _sequence_conv),
    Adapter("torch.nn.modules.conv:ConvTranspose2d", _transposed_conv),
    Adapter("torch.nn.modules.rnn:LSTM", _lstm),
    Adapter("torch.nn.modules.activation:MultiheadAttention", _multihead_attention),
    Adapter("transformers.models.bert.modeling_bert:BertSelfAttention", _bert),
    Adapter("transformers.models.distilbert.modeling_distilbert:DistilBertSelfAttention", _distilbert),
]


def make_explicit(
    model: nn.Module, adapters: Iterable[Adapter], image: Tensor, left: dict[str, str] | None = None
) -> list[str]:
    """Replace, in place, every module that can be quantized in another form; returns the paths of the replaced modules.

    1. A module whose type has an adapter becomes what that builds. A subclass has its base's adapter if it inherits
       ``forward``; if its replacement computes something else, the subclass stays. Encoders and layers of
       ``nn.Transformer`` lose their fused kernels, which call no submodule.
    2. Parameters that torch computes (parametrizations, weight and spectral norms, pruning) become their values.
    3. A subclass of ``nn.Conv2d`` or ``nn.Linear`` without an adapter becomes a plain layer if its forward is that.
    4. Any other module that multiplies two activations in its own forward is made explicit by the graph of that forward
       (``qplug.models.explicit``); it keeps its identity.

    Args:
        model: the float model in eval mode.
        adapters: the first match is used.
        image: a batch of one; its forward records the inputs on which replacements are checked. If a module returns a
            tuple, its first tensor is checked: the others are attention weights, which a replacement may omit.
        left: receives path → reason for every module whose products stay as they are.

    Raises:
        EquivalenceError: the output of a replacement differs from the original's by more than 1e-5 of its norm, or that
            of the model without fused kernels.
        InputError: the original's output is not finite.
    """
    import torch

    from qplug.models.effective_weight import compute_parameters, is_own_kind, is_reparametrized
    from qplug.models.explicit import make_products_explicit
    from qplug.models.product_finder import ProductFinder
    from qplug.models.replacement import make_plain, recorded_calls
    from qplug.models.transformer_layers import without_fused_kernels

    without_fused_kernels(model, image)
    table = {adapter.path: adapter for adapter in reversed(list(adapters))}
    adapted, computed, own_kinds = {}, {}, {}
    for name, module in model.named_modules():
        if name and not table.keys().isdisjoint(_paths(module)):
            adapted[name] = module
        elif name and is_own_kind(module):  # the model itself has no place in which another could be put
            own_kinds[name] = module
        if is_reparametrized(module):
            computed[name] = module
    finder = ProductFinder(model)
    with recorded_calls({**adapted, **computed, **own_kinds}) as calls, finder, torch.inference_mode():
        expected = model(image)
    for module in computed.values():
        compute_parameters(module)
    own_kinds = {name: module for name, module in own_kinds.items() if is_own_kind(module)}  # some are plain now
    replaced = _adapt(model, table, adapted, calls)
    for name in computed.keys() & calls.keys() - replaced - own_kinds.keys():
        calls[name].check(computed[name], name, "computing the parameters")
        replaced.add(name)
    replaced |= make_plain(model, own_kinds, calls, image, expected)
    unlike = {name for name in adapted.keys() - replaced if _paths(adapted[name])[0] not in table}
    others = [name for name in finder.found if name not in adapted or name in unlike]
    if others:
        changed, reasons = make_products_explicit(model, others, image)
        replaced.update(changed)
        if left is not None:
            left.update(reasons)
    return [name for name, _ in model.named_modules() if name in replaced]


def _adapt(
    model: nn.Module, table: Mapping[str, Adapter], modules: Mapping[str, nn.Module], calls: Mapping[str, Call]
) -> set[str]:
    """Replace modules by their adapters; returns the paths of the replaced ones."""
    from qplug.models.replacement import LARGEST_ERROR
    from qplug.models.surgery import replace

    replaced = set()
    for name, module in modules.items():
        own, inherited = _paths(module)
        adapter = table.get(own) or table[inherited]
        explicit = adapter.build(module)
        if explicit is None or name not in calls:
            continue
        if own not in table and not calls[name].error(explicit) <= LARGEST_ERROR:
            continue
        calls[name].check(explicit, name, f"the adapter for {adapter.path}")
        replace(model, module, explicit)
        replaced.add(name)
    return replaced


def _paths(module: nn.Module) -> tuple[str, str]:
    """``module:Class`` of the module's type, and of the class that it has its ``forward`` from."""
    kinds = type(module), next(base for base in type(module).__mro__ if "forward" in vars(base))
    own, inherited = (f"{kind.__module__}:{kind.__name__}" for kind in kinds)
    return own, inherited
