"""One forward of a model that counts MACs by module, and finds what no count knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qplug.core.errors import InputError
from qplug.models.tracing import no_grad_forward
from qplug.quantization.module_stack import ROOT, ModuleStack
from qplug.quantization.operator_watch import OperatorWatch
from qplug.quantization.operators import formulas
from qplug.quantization.unseen_reads import read_elsewhere, unseen_matrices


@dataclass
class Count:
    """What one forward computes.

    Attributes:
        macs: innermost module → the MACs of one image that it computes itself.
        unknown: module → operators, or its weights, of which no formula counts the MACs.
        calls: module → its calls.
        reads: module → the operator that reads its weight while it is not called, and where.
    """

    macs: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)


def count(model: nn.Module, image: Tensor) -> Count:
    """Count one forward of ``model`` in eval mode on ``image``, a batch of one.

    No module has a hook of its own meanwhile: torch takes other kernels where one has.

    Raises:
        InputError: an operator cannot be looked at, such as ``flex_attention``, which compiles itself.
    """
    with ModuleStack(model) as stack:
        no_grad_forward(model, image)
    operations = OperatorWatch(model)
    counter = FlopCounterMode(display=False, depth=None, custom_mapping=formulas())  # type: ignore[arg-type]  # None is every depth
    try:
        with _frozen(model), operations.stack, _unfused(), operations, counter:
            no_grad_forward(model, image)
    except Exception as error:  # the forward above succeeded, so a part of it cannot run in a dispatch mode of torch
        raise InputError(
            f"the model's operators cannot be counted ({type(error).__name__}: {' '.join(str(error).split())[:300]})",
            where=operations.stack.innermost,
            fix="replace the operator, as flex_attention by scaled_dot_product_attention",
        ) from error
    macs = _by_module(model, counter)
    for name, more in operations.products.items():
        macs[name] = macs.get(name, 0) + more
    for name in unseen_matrices(model, image, operations.read):
        operations.unknown[name].add("its weight")
    for name in read_elsewhere(model, image, operations.reads):
        operations.reads[name] = "code outside torch"
    unknown = {name: ", ".join(sorted(found)) for name, found in operations.unknown.items()}
    return Count(macs, unknown, dict(stack.calls), dict(operations.reads))


def _by_module(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    """Innermost module → the MACs that it computes, of the counter's totals."""
    root = type(model).__name__
    totals = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    own = dict(totals)
    for name, macs in totals.items():
        parent = name.rpartition(".")[0]
        while parent and parent not in own:  # a list of modules has no forward
            parent = parent.rpartition(".")[0]
        if parent:
            own[parent] -= macs
    own.pop("Global", None)
    return {name.removeprefix(f"{root}.") if name != root else ROOT: macs for name, macs in own.items() if macs > 0}


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Without gradients of parameters: a view of one asks for them even here, which torch's counter does not expect."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _unfused() -> Iterator[None]:
    """Let ``nn.MultiheadAttention`` call operators that torch counts by module."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
