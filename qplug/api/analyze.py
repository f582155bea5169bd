"""``qplug.inspect`` and ``qplug.sensitivity``: analyses of a model in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from qplug.analysis.inspect import Inspection, inspect as inspect_source
from qplug.analysis.sensitivity.measure import Sensitivity, SensitivityRequest, measure
from qplug.core.component import Technique
from qplug.core.errors import InputError, exits_named
from qplug.core.task import Task
from qplug.data.memory import TensorExamples
from qplug.data.memory_source import MemoryData
from qplug.hooks.registry import Registry, installed
from qplug.pipeline.quantize import MOST, give

RANGES = ("baseline.hessian",)


@exits_named
def inspect(
    model: nn.Module, example: Any, *, task: Task | str | None = None, registry: Registry | None = None
) -> Inspection:
    """What of a model can be quantized: its sites, what stays in float with the reasons, and its costs.

    Args:
        model: a float model; it stays as it is.
        example: a batch that it takes, or a loader of batches.
        task: as ``qplug.quantize`` takes it.
        registry: the installed plugins unless given.

    Raises:
        InputError: the model fails on the example, or cannot be quantized at all.
    """
    batches = [example] if isinstance(example, Tensor) else example
    given = give(model, batches, task, registry, limit=1)
    found = inspect_source(given.source, registry)
    found.notes[:0] = given.notes
    return found


@exits_named
def sensitivity(
    model: nn.Module,
    calibration: Iterable[Any],
    evaluation: Iterable[Any] | None = None,
    *,
    ranges: Sequence[str] = RANGES,
    task: Task | str | None = None,
    device: str = "cpu",
    calibration_examples: int = MOST,
    registry: Registry | None = None,
    observers: Sequence[object] = (),
    **request: Any,
) -> Sensitivity:
    """Which tensors are hard to quantize: one at a time is quantized, and the change of the outputs measured.

    Args:
        model: a float model; it stays as it is.
        calibration: batches as ``qplug.quantize`` takes them.
        evaluation: batches for the change of the outputs, none of them in ``calibration``; labels are not read. Without
            it, the second half of ``calibration`` is taken for that.
        ranges: names of techniques that make quantizers; the first that takes a site makes its quantizer.
        task, device, calibration_examples, registry, observers: as ``qplug.quantize`` takes them.
        request: fields of ``SensitivityRequest``: ``bits``, ``match``, ``hessian_probes``, ``seed``, ….

    Raises:
        InputError: an argument cannot be used, or there is one example only and no evaluation data.
    """
    registry = registry or installed()
    given = give(model, calibration, task, registry, calibration_examples)
    first, second = _halves(given.calibration, evaluation, given.keywords)
    techniques = [_technique(name, registry) for name in ranges]
    result = measure(
        given.source,
        MemoryData.of(first),
        MemoryData.of(second),
        techniques,
        _request(request),
        device=device,
        registry=registry,
        observers=observers,
    )
    if evaluation is None:
        result.warnings.append(f"the outputs were compared on the last {len(second)} calibration examples")
    return result


def _halves(
    examples: TensorExamples, evaluation: Iterable[Any] | None, keywords: Any
) -> tuple[TensorExamples, TensorExamples]:
    if evaluation is not None:
        return examples, TensorExamples(evaluation, "evaluation", keywords=keywords, labelled=False)
    half = (len(examples) + 1) // 2
    if half == len(examples):
        what = "there is one example, and the outputs must be compared on another one"
        raise InputError(what, where="calibration", fix="give more examples, or evaluation=")
    return examples.part(slice(0, half)), examples.part(slice(half, None))


def _technique(name: str, registry: Registry) -> Technique:
    from qplug.core.text import did_you_mean

    if name not in registry.techniques:
        raise InputError(f"there is no technique '{name}'", where="ranges", fix=did_you_mean(name, registry.techniques))
    technique = registry.techniques[name]
    return technique(technique.Config(use=name))  # type: ignore[call-arg]  # of the subclass


def _request(values: dict[str, Any]) -> SensitivityRequest:
    from pydantic import ValidationError

    try:
        return SensitivityRequest(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{first['msg']}, received {first['input']!r}", where=str(first["loc"][0])) from None
