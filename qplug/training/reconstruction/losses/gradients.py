"""Gradients of a loss of the model's outputs with respect to the output of one of its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

TEMPERATURE = 20.0
"""What the released code of APHQ-ViT and of FIMA-Q divides outputs by before their softmax; not printed in the papers.

At 20 no class is certain, and the divergence is nearly that of centred logits in square.
"""

Put = Callable[[Tensor, tuple[Any, ...], Mapping[str, Any]], Tensor]
"""(output, arguments, keyword arguments) of a module → what is put in the place of its output."""


def gradient(
    model: nn.Module, name: str, batch: Tensor, loss: Callable[[Tensor], Tensor], put: Put | None = None
) -> Tensor:
    """dL/dy of the output y of the module ``name``, (B, …), for ``loss`` of the model's outputs on ``batch``.

    With ``put`` it is the gradient at what that puts in the place of y. Nothing before the module is differentiated; of
    what lies behind it the graph of one batch is held.
    """
    outputs: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        with torch.no_grad():
            outputs.append((out if put is None else put(out, args, kwargs)).detach().requires_grad_(True))
        return outputs[-1].clone()  # residual blocks add their shortcut to it in place, which no leaf may be

    handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    try:
        with _frozen(model), torch.enable_grad():
            (found,) = torch.autograd.grad(loss(model(batch)), outputs[-1])
    finally:
        handle.remove()
    return found


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within it, no parameter asks for a gradient: no graph is kept for what lies before the module."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
