"""Gradients of a loss on the model's outputs with respect to the output of one of its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError

TEMPERATURE = 20.0
"""Temperature of the softmax in the released code of APHQ-ViT and of FIMA-Q; the papers do not print it.

At 20 no class has a probability near 1, and the divergence is nearly the squared distance of centred logits.
"""

ReplaceOutput = Callable[[Tensor, tuple[Any, ...], Mapping[str, Any]], Tensor]
"""(output, arguments, keyword arguments) of a module → the tensor that replaces its output."""


def gradient(
    model: nn.Module,
    name: str,
    batch: Tensor,
    loss: Callable[[Tensor], Tensor],
    replace_output: ReplaceOutput | None = None,
) -> Tensor:
    """dL/dy of the output y of the module ``name``, (B, …), for ``loss`` of the model's outputs on ``batch``.

    With ``replace_output`` the gradient is taken at the replaced output. The graph begins at y: modules before it are
    not differentiated.

    Raises:
        InputError: the loss does not depend on y with a gradient.
    """
    outputs: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        with torch.no_grad():
            replaced = out if replace_output is None else replace_output(out, args, kwargs)
            outputs.append(replaced.detach().requires_grad_(True))
        return outputs[-1].clone()  # a copy: residual blocks may add the shortcut in place, which a leaf forbids

    handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    try:
        with _frozen(model), torch.enable_grad():
            total = loss(model(batch))
            (result,) = torch.autograd.grad(total, outputs[-1], allow_unused=True) if total.requires_grad else (None,)
    finally:
        handle.remove()
    if result is None:
        raise InputError(
            f"the loss of the reconstruction needs the gradient at {name}, and the model's outputs do not depend on it "
            "with a gradient: torch.no_grad(), torch.inference_mode() or detach() in a forward",
            fix="choose loss: mse, remove it from the forward, or leave this block out of the technique",
        )
    return result


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """A context in which no parameter requires a gradient, so that autograd records nothing before the module."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
