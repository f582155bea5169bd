"""Adapters: a table from module types to equivalent modules that can be quantized, with a check of equivalence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from qplug.core.errors import EquivalenceError, InputError
from qplug.core.types import Adapter

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST_ADAPTER_ERROR = 1e-5
"""Largest change of a module's output by its adapter, as a fraction of the output's norm."""


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
    Adapter("timm.layers.linear:Linear", _linear),
    Adapter("torch.nn.modules.activation:MultiheadAttention", _multihead_attention),
    Adapter("transformers.models.bert.modeling_bert:BertSelfAttention", _bert),
    Adapter("transformers.models.distilbert.modeling_distilbert:DistilBertSelfAttention", _distilbert),
]


def make_explicit(
    model: nn.Module, adapters: Iterable[Adapter], image: Tensor, left: dict[str, str] | None = None
) -> list[str]:
    """Replace, in place, every module whose type has an adapter; returns the paths of the replaced modules.

    A subclass has its base's adapter if it inherits ``forward``; if its replacement computes something else, the
    subclass stays. Encoders and layers of ``nn.Transformer`` lose their fused kernels, which call no submodule.

    Any other module that multiplies two activations in its own forward is made explicit by the graph of that forward
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

    from qplug.models.explicit import make_products_explicit
    from qplug.models.product_finder import ProductFinder
    from qplug.models.surgery import replace
    from qplug.models.transformer_layers import without_fused_kernels

    without_fused_kernels(model, image)
    table = {adapter.path: adapter for adapter in reversed(list(adapters))}
    targets = {name: module for name, module in model.named_modules() if not table.keys().isdisjoint(_paths(module))}
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any], Tensor]] = {}

    def record(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            copies = tuple(map(_copy, args)), {key: _copy(value) for key, value in kwargs.items()}
            calls[name] = (*copies, _first(out).clone())

        return hook

    handles = [module.register_forward_hook(record(name), with_kwargs=True) for name, module in targets.items()]
    finder = ProductFinder(model)
    try:
        with torch.inference_mode(), finder:
            model(image)
    finally:
        for handle in (*handles, finder):
            handle.remove()
    replaced, unlike = [], []
    for name, module in targets.items():
        own, inherited = _paths(module)
        adapter = table.get(own) or table[inherited]
        explicit = adapter.build(module)
        if explicit is None or name not in calls:
            continue
        args, kwargs, expected = calls[name]
        if not torch.isfinite(expected).all():
            raise InputError(
                "the output is NaN or infinite on a random input",
                where=name,
                fix="check that the weights belong to this model, and that the model does not overflow float32",
            )
        with torch.inference_mode():
            error = float((_first(explicit(*args, **kwargs)) - expected).norm() / expected.norm().clamp_min(1e-12))
        if not error <= LARGEST_ADAPTER_ERROR:
            if own not in table:
                unlike.append(name)
                continue
            raise EquivalenceError(
                f"the adapter for {adapter.path} changes the output by {error:.1e} of its norm, "
                f"more than {LARGEST_ADAPTER_ERROR:.0e}",
                where=name,
                fix="the installed library may compute this module differently: report it, or remove the adapter",
            )
        replace(model, module, explicit)
        replaced.append(name)
    others = [name for name in finder.found if name not in targets or name in unlike]
    if others:
        changed, reasons = make_products_explicit(model, others, image)
        replaced += changed
        if left is not None:
            left.update(reasons)
    return replaced


def _paths(module: nn.Module) -> tuple[str, str]:
    """``module:Class`` of the module's type, and of the class that it has its ``forward`` from."""
    kinds = type(module), next(base for base in type(module).__mro__ if "forward" in vars(base))
    own, inherited = (f"{kind.__module__}:{kind.__name__}" for kind in kinds)
    return own, inherited


def _copy(value: Any) -> Any:
    """A copy of a tensor, unaffected by later in-place operations; any other value as it is."""
    from torch import Tensor

    return value.clone() if isinstance(value, Tensor) else value


def _first(out: Any) -> Tensor:
    tensor: Tensor = out[0] if isinstance(out, tuple) else out
    return tensor
