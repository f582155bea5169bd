"""Who is at fault when a model cannot be traced to a format: the quantizer of a site, or an operator of the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from qplug.core.errors import InputError, QplugError
from qplug.export.formats.fallback import DecodedWeight, plain_weight, traced
from qplug.quantization.plan import Decision

if TYPE_CHECKING:
    from qplug.hooks.registry import Registry
    from qplug.pipeline.load_run import LoadedRun


@contextmanager
def explained(planned: LoadedRun, format: str, registry: Registry) -> Iterator[None]:
    """Turn whatever tracing raises into an ``InputError`` that names the site and its quantizer, or the operator."""
    try:
        yield
    except QplugError:
        raise
    except Exception as error:  # torch.export and torch.onnx fail in many ways
        raise _refusal(error, planned, format, registry) from error


def _refusal(error: Exception, planned: LoadedRun, format: str, registry: Registry) -> InputError:
    what = _operator(error)
    for decision in {d.quantizer.kind: d for d in planned.plan}.values():
        try:
            _alone(decision)
        except Exception as own:  # as above
            kind, owner = decision.quantizer.kind, registry.owners.get(f"quantizer:{decision.quantizer.kind}")
            return InputError(
                f"{format} cannot express {_operator(own)}, of quantizer '{kind}'{f' of {owner}' if owner else ''}",
                where=decision.site.name,
                fix="quantize such sites by another technique, or leave them in float: "
                f"quantize.overrides: [{{match: {decision.site.kind.value}, skip: true}}]",
            )
    return InputError(
        f"{format} cannot express {what}, which the model itself computes",
        where=str(planned.run.folder),
        fix="replace the module that computes it, by an adapter or by a technique that rewrites modules",
    )


def _alone(decision: Decision) -> None:
    """Trace one quantizer; raises where that fails."""
    shape, quantizer = decision.site.shape, decision.quantizer
    module: nn.Module
    inputs: tuple[torch.Tensor, ...] = ()
    if decision.site.kind.is_weight:
        module = plain_weight(decision, torch.zeros(shape), False, DecodedWeight)
    else:
        module, inputs = traced(quantizer, False), (torch.zeros((1, *shape)),)
    with torch.no_grad():
        program = torch.export.export(module.eval(), inputs, strict=False)
        torch.onnx.export(program, optimize=False, verbose=False)


def _operator(error: Exception) -> str:
    """What an error of torch.export or torch.onnx is about: the operator, or the first words of its first cause."""
    found = re.search(r"OpOverload\(op='([\w.]+)'", str(error))
    if found:
        return f"the operator {found[1]}"
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"something that cannot be traced ({type(cause).__name__}: {' '.join(str(cause).split())[:200]})"
