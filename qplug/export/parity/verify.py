"""Run the parity check on a run's file and on its simulation, and refuse a file that differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qplug.core.errors import ParityError, QplugError
from qplug.data.memory import Keywords, TensorExamples
from qplug.export.cpu import caution, may_saturate
from qplug.export.parity.check import check_parity
from qplug.export.parity.refusal import FIX, refusal, suspects
from qplug.export.parity.result import Parity
from qplug.export.runtimes.table import RUNTIMES
from qplug.hooks.registry import Registry, backend_of, component
from qplug.pipeline.load_run import LoadedRun, load_planned, lowered
from qplug.pipeline.run_key import EVALUATION_SEED

if TYPE_CHECKING:
    from qplug.core.examples import Examples
    from qplug.export.exported_file import ExportedFile
    from qplug.export.formats.table import ExportFormat

BATCH_SIZE = 4
"""Images of one batch of the comparison."""


@dataclass(frozen=True)
class Compared:
    """What a file and its simulation are compared on.

    Attributes:
        images: number of examples.
        model: the float model of a run in memory.
        inputs: batches of inputs; the run's evaluation images if ``None``.
    """

    images: int
    model: nn.Module | None = None
    inputs: Iterable[Any] | None = None


def verified(
    file: ExportedFile, planned: LoadedRun, row: ExportFormat, compared: Compared, saturating: bool, registry: Registry
) -> Parity:
    """Compare a file, executed by its format's runtime, with the simulation.

    Args:
        file: not yet written.
        planned: the run that it was made from.
        row: its format.
        compared: what to compare on.
        saturating: whether the file multiplies unsigned by signed bytes on every processor.
        registry: of installed plugins.

    Raises:
        ParityError: the runtime fails on the file, or computes other values than the simulation.
    """
    try:
        parity = _compared(file, planned, row.runtime, compared, registry)
    except QplugError:
        raise
    except Exception as error:  # each runtime has its own error classes
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ParityError(
            f"{RUNTIMES[row.runtime].title} cannot execute the file: {message}", where=row.name, fix=FIX
        ) from error
    if parity.first_wrong is not None:
        suspected = saturating and any(may_saturate(planned.plan, path) for path in suspects(parity, planned.plan))
        raise refusal(parity, planned, caution() if suspected else None)
    return parity


def _compared(file: ExportedFile, planned: LoadedRun, runtime: str, compared: Compared, registry: Registry) -> Parity:
    # whoever loaded the run allowed both
    run = planned.run.folder
    again = load_planned(run, registry, changed_code=True, allow_code=True, model=compared.model)
    simulation = lowered(again, registry, torch.device("cpu"))
    inputs = evaluation_batches(planned, compared, registry)
    with backend_of(planned.recipe.backend, registry).inference(simulation):
        return check_parity(RUNTIMES[runtime].open(file), simulation, planned.plan, inputs, file.joined, planned.task)


def evaluation_batches(planned: LoadedRun, compared: Compared, registry: Registry) -> Iterator[Tensor]:
    """The first evaluation images of a run, or those that were given, preprocessed, in batches of ``BATCH_SIZE``."""
    from qplug.data.loading import prepared

    opened: Examples
    if compared.inputs is None:
        opened = component(registry.datasets, planned.recipe.data.evaluation).open(EVALUATION_SEED)
    else:
        keywords = Keywords.of(compared.model.forward) if compared.model is not None else None
        opened = TensorExamples(compared.inputs, "inputs", keywords=keywords, labelled=False, limit=compared.images)
    count = min(compared.images, len(opened))
    stream = prepared(opened, planned.preprocessing.transform(), min(BATCH_SIZE, count))
    for start, x in zip(range(0, count, BATCH_SIZE), stream, strict=False):
        yield x[: count - start]
