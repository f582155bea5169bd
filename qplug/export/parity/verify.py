"""Run the parity check on a run's file and on its simulation, and refuse a file that differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from qplug.core.errors import ParityError, QplugError
from qplug.export.cpu import caution, may_saturate
from qplug.export.parity.check import check_parity
from qplug.export.parity.refusal import FIX, refusal, suspects
from qplug.export.parity.result import Parity
from qplug.export.runtimes.table import RUNTIMES
from qplug.hooks.registry import Registry, backend_of, component
from qplug.pipeline.load_run import LoadedRun, load_quantized
from qplug.pipeline.run_key import EVALUATION_SEED

if TYPE_CHECKING:
    from qplug.export.exported_file import ExportedFile
    from qplug.export.formats.table import ExportFormat

BATCH_SIZE = 4
"""Images of one batch of the comparison."""


def verified(
    file: ExportedFile, planned: LoadedRun, row: ExportFormat, images: int, saturating: bool, registry: Registry
) -> Parity:
    """Compare a file, executed by its format's runtime, with the simulation.

    Args:
        file: not yet written.
        planned: the run that it was made from.
        row: its format.
        images: number of evaluation images.
        saturating: whether the file multiplies unsigned by signed bytes on every processor.
        registry: of installed plugins.

    Raises:
        ParityError: the runtime fails on the file, or computes other values than the simulation.
    """
    try:
        parity = _compared(file, planned, row.runtime, images, registry)
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


def _compared(file: ExportedFile, planned: LoadedRun, runtime: str, images: int, registry: Registry) -> Parity:
    # whoever loaded the run allowed both
    simulation = load_quantized(planned.run.folder, registry=registry, changed_code=True, allow_code=True)
    inputs = evaluation_batches(planned, images, registry)
    with backend_of(planned.recipe.backend, registry).inference(simulation):
        return check_parity(RUNTIMES[runtime].open(file), simulation, planned.plan, inputs, file.joined, planned.task)


def evaluation_batches(planned: LoadedRun, images: int, registry: Registry) -> Iterator[Tensor]:
    """The first ``images`` evaluation images of a run, preprocessed, in batches of ``BATCH_SIZE``."""
    from qplug.data.loading import prepared

    opened = component(registry.datasets, planned.recipe.data.evaluation).open(EVALUATION_SEED)
    count = min(images, len(opened))
    stream = prepared(opened, planned.preprocessing.transform(), min(BATCH_SIZE, count))
    for start, x in zip(range(0, count, BATCH_SIZE), stream, strict=False):
        yield x[: count - start]
