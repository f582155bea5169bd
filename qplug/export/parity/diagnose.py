"""The cause of a model that cannot be traced to a format: the quantizer of a site, or an operator of the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from qplug.core.errors import InputError, QplugError
from qplug.export.formats.fallback import DecodedWeight, plain_weight, traced
from qplug.export.requirements import ONNX
from qplug.quantization.plan import Decision

if TYPE_CHECKING:
    from qplug.export.formats.table import ExportFormat
    from qplug.hooks.registry import Registry
    from qplug.pipeline.load_run import LoadedRun


@contextmanager
def explained(planned: LoadedRun, row: ExportFormat, registry: Registry) -> Iterator[None]:
    """Turn every error of tracing into an ``InputError`` that names the site and its quantizer, or the operator."""
    try:
        yield
    except QplugError:
        raise
    except Exception as error:  # torch.export and torch.onnx raise many classes
        raise _refusal(error, planned, row, registry) from error


def _refusal(error: Exception, planned: LoadedRun, row: ExportFormat, registry: Registry) -> InputError:
    for decision in {d.quantizer.kind: d for d in planned.plan}.values():
        try:
            _trace_alone(decision, ONNX in row.needs)
        except Exception as own:  # as above
            kind, owner = decision.quantizer.kind, registry.owners.get(f"quantizer:{decision.quantizer.kind}")
            return InputError(
                f"{row.name} cannot express {_operator(own)}, of quantizer '{kind}'{f' of {owner}' if owner else ''}",
                where=decision.site.name,
                fix="quantize such sites by another technique, or leave them in float: "
                f"quantize.overrides: [{{match: {decision.site.kind.value}, skip: true}}]",
            )
    return InputError(
        f"{row.name} cannot express {_operator(error)}, which the model itself computes",
        where=str(planned.run.folder),
        fix="replace the module that computes it, by an adapter or by a technique that rewrites modules",
    )


def _trace_alone(decision: Decision, onnx: bool) -> None:
    """Trace one quantizer, and with ``onnx`` convert it to ONNX; raises if either fails."""
    shape, quantizer = decision.site.shape, decision.quantizer
    module: nn.Module
    inputs: tuple[torch.Tensor, ...] = ()
    if decision.site.kind.is_weight:
        module = plain_weight(decision, torch.zeros(shape), False, DecodedWeight)
    else:
        module, inputs = traced(quantizer, False), (torch.zeros((1, *shape)),)
    with torch.no_grad():
        program = torch.export.export(module.eval(), inputs, strict=False)
        if onnx:
            torch.onnx.export(program, optimize=False, verbose=False)


def _operator(error: Exception) -> str:
    """The operator that an error of torch.export or torch.onnx names, or the first words of its first cause."""
    found = re.search(r"OpOverload\(op='([\w.]+)'", str(error))
    if found:
        return f"the operator {found[1]}"
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"something that cannot be traced ({type(cause).__name__}: {' '.join(str(cause).split())[:200]})"
