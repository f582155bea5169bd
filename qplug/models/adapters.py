"""Adapters: a table from module types to equivalent modules that can be quantized, with a check of equivalence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qplug.core.errors import EquivalenceError, InputError
from qplug.core.types import Adapter

if TYPE_CHECKING:
    from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any], "Tensor"]
"""Arguments, keyword arguments, and the first output tensor of one call of a module."""
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


def _standardized(module: nn.Module) -> nn.Module:
    from qplug.models.layers import standardized_conv

    return standardized_conv(module).eval()


def _blur(module: nn.Module) -> nn.Module | None:
    from qplug.models.layers import blur

    made = blur(module)
    return None if made is None else made.eval()


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
    Adapter("timm.layers.conv2d_same:Conv2dSameExport", _padded_conv),
    Adapter("timm.layers.linear:Linear", _linear),
    Adapter("timm.layers.std_conv:StdConv2d", _standardized),
    Adapter("timm.layers.std_conv:StdConv2dSame", _standardized),
    Adapter("timm.layers.std_conv:ScaledStdConv2d", _standardized),
    Adapter("timm.layers.std_conv:ScaledStdConv2dSame", _standardized),
    Adapter("timm.layers.blur_pool:BlurPool2d", _blur),
    Adapter("transformers.models.bert.modeling_bert:BertSelfAttention", _bert),
    Adapter("transformers.models.distilbert.modeling_distilbert:DistilBertSelfAttention", _distilbert),
]


def make_explicit(model: nn.Module, adapters: Iterable[Adapter], image: Tensor) -> list[str]:
    """Replace, in place, every module whose exact type has an adapter; returns the paths of the replaced modules.

    Parameters that torch computes (parametrizations, weight and spectral norms, pruning) become their values. A
    subclass of ``nn.Conv2d`` or ``nn.Linear`` without an adapter becomes a plain layer if its forward is just that.

    Args:
        model: the float model in eval mode.
        adapters: the first match is used.
        image: a batch of one; its forward records the inputs on which replacements are checked. If a module returns a
            tuple, its first tensor is checked: the others are attention weights, which a replacement may omit.

    Raises:
        EquivalenceError: the output of a replacement differs from the original's by more than 1e-5 of its norm.
        InputError: the original's output is not finite.
    """
    import torch

    from qplug.models.effective_weight import compute_parameters, is_own_kind, is_reparametrized
    from qplug.models.surgery import replace

    table = {adapter.path: adapter for adapter in reversed(list(adapters))}
    computed = {name: module for name, module in model.named_modules() if is_reparametrized(module)}
    targets = {
        name: module
        for name, module in model.named_modules()
        if name in computed or _path(module) in table or is_own_kind(module)
    }
    calls: dict[str, Call] = {}

    def record(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            copies = tuple(map(_copy, args)), {key: _copy(value) for key, value in kwargs.items()}
            calls[name] = (*copies, _first(out).clone())

        return hook

    handles = [module.register_forward_hook(record(name), with_kwargs=True) for name, module in targets.items()]
    try:
        with torch.inference_mode():
            expected = model(image)
    finally:
        for handle in handles:
            handle.remove()
    for module in computed.values():
        compute_parameters(module)
    replaced, own_kinds = [], []
    for name, module in targets.items():
        adapter = table.get(_path(module))
        if adapter is not None:
            explicit, of = adapter.build(module), f"the adapter for {adapter.path}"
        elif is_own_kind(module):
            own_kinds.append(name)
            continue
        else:
            explicit, of = module, "computing the parameters"
        if explicit is None or name not in calls:
            continue
        _check(explicit, calls[name], name, of)
        if explicit is not module:
            replace(model, module, explicit)
        replaced.append(name)
    subclasses = {name: (targets[name], calls[name]) for name in own_kinds if name in calls}
    return replaced + _make_plain(model, subclasses, image, expected)


def _make_plain(
    model: nn.Module, subclasses: Mapping[str, tuple[nn.Module, Call]], image: Tensor, expected: Any
) -> list[str]:
    """Replace subclasses of plain layers where one plain layer computes the same; returns their paths.

    They stay where the model does not compute the same with it: it may read what only the subclass has.
    """
    import torch

    from qplug.models.effective_weight import plain_layer
    from qplug.models.surgery import replace

    made: dict[str, tuple[nn.Module, nn.Module]] = {}
    for name, (module, (args, kwargs, out)) in subclasses.items():
        plain = plain_layer(module, args[0]) if len(args) == 1 and not kwargs else None
        if plain is not None and _error(plain, (args, kwargs, out)) <= LARGEST_ADAPTER_ERROR:
            made[name] = (module, plain)
    for module, plain in made.values():
        replace(model, module, plain)
    if made:
        try:
            with torch.inference_mode():
                same = not isinstance(expected, torch.Tensor) or torch.allclose(
                    model(image), expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-4
                )
        except Exception:
            same = False
        if not same:
            for module, plain in made.values():
                replace(model, plain, module)
            return []
    return list(made)


def _check(explicit: nn.Module, call: Call, name: str, of: str) -> None:
    """Raise ``EquivalenceError`` or ``InputError`` as ``make_explicit``; ``of`` names what made ``explicit``."""
    import torch

    if not torch.isfinite(call[2]).all():
        raise InputError(
            "the output is NaN or infinite on a random input",
            where=name,
            fix="check that the weights belong to this model, and that the model does not overflow float32",
        )
    error = _error(explicit, call)
    if not error <= LARGEST_ADAPTER_ERROR:
        raise EquivalenceError(
            f"{of} changes the output by {error:.1e} of its norm, more than {LARGEST_ADAPTER_ERROR:.0e}",
            where=name,
            fix="the installed library may compute this module differently: report it, or remove the adapter",
        )


def _error(explicit: nn.Module, call: Call) -> float:
    """Change of the first output tensor in a recorded call, as a fraction of its norm."""
    import torch

    args, kwargs, expected = call
    with torch.inference_mode():
        return float((_first(explicit(*args, **kwargs)) - expected).norm() / expected.norm().clamp_min(1e-12))


def _path(module: nn.Module) -> str:
    return f"{type(module).__module__}:{type(module).__name__}"


def _copy(value: Any) -> Any:
    """A copy of a tensor, unaffected by later in-place operations; any other value as it is."""
    from torch import Tensor

    return value.clone() if isinstance(value, Tensor) else value


def _first(out: Any) -> Tensor:
    tensor: Tensor = out[0] if isinstance(out, tuple) else out
    return tensor
