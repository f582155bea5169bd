"""Gradients of the calibration loss in models that compute parts of their forward without them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.models.tracing import is_norm

CAUSES = "torch.no_grad(), torch.inference_mode() or detach() in its forward"


@contextmanager
def traced_operations(model: nn.Module, operations: Iterable[nn.Module]) -> Iterator[None]:
    """Context in which autograd records the outputs of ``operations``, although every parameter is frozen.

    Recording starts again behind a part of the model that computes without gradients. Within such a part nothing is
    recorded.
    """
    handles = []
    for operation in operations:
        if is_norm(operation):
            handles.append(operation.register_forward_pre_hook(_branch))
        elif isinstance(operation, nn.Softmax):
            handles.append(operation.register_forward_pre_hook(_record_input))
        handles.append(operation.register_forward_hook(_record_output))
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    handles += [table.register_forward_hook(_record_table) for table in tables]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)


def traced(batch: Tensor) -> Tensor:
    """The batch with ``requires_grad``, so that autograd records the forward although all parameters are frozen.

    Tokens are unchanged: for them, autograd records from the embeddings on.
    """
    return batch.detach().requires_grad_(True) if batch.is_floating_point() else batch


def backward(loss: Tensor, name: str) -> None:
    """Differentiate ``loss``, the calibration loss ``name``.

    Raises:
        InputError: it depends on no operation, or the model changes in place what its gradient needs.
    """
    need = f"calibration.loss {name} needs gradients"
    if not loss.requires_grad:
        raise no_gradient(need)
    try:
        loss.backward()
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        what, _, _ = str(error).partition(" Hint:")
        raise InputError(
            f"{need}, and the model changes a tensor in place that its gradient reads: {what}",
            where="calibration.loss",
            fix="replace operations such as relu_() and += in the forward, or set calibration: {loss: none}",
        ) from error


def no_gradient(need: str, where: str = "calibration.loss", fix: str = "") -> InputError:
    """The error for a model whose outputs depend on no operation with a gradient; ``need`` says who needs gradients."""
    return InputError(
        f"{need}, and the model's outputs depend on no operation with a gradient: {CAUSES}",
        where=where,
        fix=fix or "set calibration: {loss: none}, so that every output counts alike, or remove it from the forward",
    )


def _branch(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A view of a norm's input, so that its gradient is the norm's alone and not the sum over all readers."""
    x = args[0]
    if _starts(x):
        x = x.detach().requires_grad_(True)
    return (x.view_as(x), *args[1:])


def _record_input(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """An input that autograd records, if it records nothing yet."""
    return (args[0].detach().requires_grad_(True), *args[1:]) if _starts(args[0]) else None


def _record_output(_: nn.Module, __: Any, out: Any) -> Tensor | None:
    """A copy that autograd records, if it records nothing yet; a copy, because the model may change it in place.

    Outputs other than one tensor, as of an ``nn.LSTM``, stay as they are.
    """
    return out.detach().requires_grad_(True).clone() if isinstance(out, Tensor) and _starts(out) else None


def _record_table(_: nn.Module, __: Any, out: Tensor) -> Tensor | None:
    return out.requires_grad_(True) if torch.is_grad_enabled() else None


def _starts(x: Tensor) -> bool:
    """Whether recording has to start at ``x``."""
    return torch.is_grad_enabled() and not x.requires_grad and x.is_floating_point() and not x.is_inference()
