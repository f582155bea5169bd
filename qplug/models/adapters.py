"""Adapters: the table from module type to an equivalent that sites and backends know, and the check that it is one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from qplug.core.errors import EquivalenceError, InputError
from qplug.core.types import Adapter

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 1e-5


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


ADAPTERS = [
    Adapter("timm.layers.attention:Attention", _attention),
    Adapter("timm.models.swin_transformer:WindowAttention", _window_attention),
    Adapter("timm.layers.conv2d_same:Conv2dSame", _padded_conv),
    Adapter("timm.layers.linear:Linear", _linear),
    Adapter("transformers.models.bert.modeling_bert:BertSelfAttention", _bert),
    Adapter("transformers.models.distilbert.modeling_distilbert:DistilBertSelfAttention", _distilbert),
]


def make_explicit(model: nn.Module, adapters: Iterable[Adapter], image: Tensor) -> list[str]:
    """Replace, in place, every module whose exact type an adapter knows; returns the paths that were replaced.

    Args:
        model: the float model in eval mode.
        adapters: first match wins.
        image: a batch of one; its forward gives each replacement the input that it is checked on. Of a module that
            returns a tuple, the first tensor is checked: the others are weights to look at, which may be left out.

    Raises:
        EquivalenceError: a replacement's output differs from the original's by more than 1e-5 of its norm.
        InputError: the original's output is not finite.
    """
    import torch

    from qplug.models.surgery import replace

    table = {adapter.path: adapter for adapter in reversed(list(adapters))}
    targets = {
        name: module
        for name, module in model.named_modules()
        if f"{type(module).__module__}:{type(module).__name__}" in table
    }
    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any], Tensor]] = {}

    def remember(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            copies = tuple(map(_copy, args)), {key: _copy(value) for key, value in kwargs.items()}
            seen[name] = (*copies, _first(out).clone())

        return hook

    handles = [module.register_forward_hook(remember(name), with_kwargs=True) for name, module in targets.items()]
    try:
        with torch.inference_mode():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    replaced = []
    for name, module in targets.items():
        adapter = table[f"{type(module).__module__}:{type(module).__name__}"]
        explicit = adapter.build(module)
        if explicit is None or name not in seen:
            continue
        args, kwargs, expected = seen[name]
        if not torch.isfinite(expected).all():
            raise InputError(
                "the output is NaN or infinite on a random input",
                where=name,
                fix="look for weights that do not belong to this model, or for a model that overflows float32",
            )
        with torch.inference_mode():
            error = float((_first(explicit(*args, **kwargs)) - expected).norm() / expected.norm().clamp_min(1e-12))
        if not error <= TOLERANCE:
            raise EquivalenceError(
                f"the adapter for {adapter.path} changes the output by {error:.1e} of its norm, beyond {TOLERANCE:.0e}",
                where=name,
                fix="the installed library may compute this module in another way: report it, or remove the adapter",
            )
        replace(model, module, explicit)
        replaced.append(name)
    return replaced


def _copy(value: Any) -> Any:
    """Another tensor of the same values, which no operation in place that follows reaches; or what it is."""
    from torch import Tensor

    return value.clone() if isinstance(value, Tensor) else value


def _first(out: Any) -> Tensor:
    tensor: Tensor = out[0] if isinstance(out, tuple) else out
    return tensor
