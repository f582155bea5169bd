"""``qplug.quantize``: the run on a model in memory, and what can be done with its result."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from qplug.core.errors import InputError, exits_named
from qplug.core.storage.atomic import check_file, write_file
from qplug.core.task import Task
from qplug.export.export_run import COMPARED_IMAGES, Export, check_new, export_run
from qplug.export.formats.table import DEFAULT as DEFAULT_FORMAT, format_of
from qplug.hooks.registry import Registry
from qplug.pipeline.quantize import MOST, quantize as quantize_in_memory
from qplug.pipeline.results import RunResult
from qplug.quantization.accounting import DEFAULT, convention
from qplug.recipe import Recipe

if TYPE_CHECKING:
    from qplug.core.storage.cache import Cache

HEADS = ("result", "value")
"""Of a table without columns, in files that need some."""
REPORTS = (".md", ".html", ".txt")


class Quantized(RunResult):
    """The result of ``qplug.quantize``.

    Attributes:
        model: the quantized module; it takes and returns what the float model does.
        metrics: numbers by name: ``float.<name>`` and ``quantized.<name>`` of what was measured, bits, sizes, costs.
        plan: the quantizer of every tensor.
        warnings: one sentence each.
    """

    registry: Registry | None = None
    """Of the run; discovered if ``None``."""

    def __repr__(self) -> str:
        score = self.metrics.get("score", "top1")
        pair = [self.metrics.get(f"{model}.{score}") for model in ("float", "quantized")]
        values = " → ".join("–" if value is None else f"{value:.4g}" for value in pair)
        size = f"{self.metrics['float.size_mb']:.3g} → {self.metrics['size_mb']:.3g} MB"
        return f"<Quantized by {self.recipe.name}: {score} {values}, {size}; .report() tells more>"

    @exits_named
    def save(self, folder: str | Path) -> Path:
        """Write a run folder, which ``qplug compare`` reads and ``qplug.load_quantized(folder, model=…)`` loads.

        Returns:
            The folder. It holds the weights and no code, so loading needs a model of the same class.

        Raises:
            InputError: the folder exists or cannot be written.
        """
        assert self.write is not None
        target = Path(folder)
        self.write(target)
        self.folder = target
        return target

    @exits_named
    def export(
        self,
        path: str | Path,
        format: str = DEFAULT_FORMAT,
        *,
        inputs: Iterable[Any] | None = None,
        verify: bool = True,
        images: int = COMPARED_IMAGES,
        saturating: bool = False,
    ) -> Export:
        """Write the quantized model to a file, provided that its runtime computes the same values.

        Args:
            path: the file to write.
            format: as ``qplug export --format``.
            inputs: batches to compare on; by default the evaluation data, or else the calibration data.
            verify: whether the file is compared with this model.
            images: number of examples to compare.
            saturating: as ``qplug.export_run``.

        Raises:
            InputError, ParityError: as ``qplug.export_run``.
        """
        assert self.write is not None
        assert self.inputs is not None
        format_of(format)
        check_new(Path(path))
        examples = self.inputs.evaluation or self.inputs.images.examples
        shared: dict[str, Any] = {"verify": verify, "images": images, "saturating": saturating}
        shared["registry"] = self.registry
        source: Any = self.inputs.made_by
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            self.write(folder)
            batches = inputs if inputs is not None else _batches(examples, source.config.keywords)
            return export_run(folder, format, path, model=source.module, inputs=batches, **shared)

    @exits_named
    def report(self, path: str | Path | None = None) -> str:
        """The tables that ``qplug run`` prints, with the warnings; also written to ``path`` if it is given.

        Args:
            path: a file in .md, .html or .txt; ``None`` writes none.

        Raises:
            InputError: the file has another suffix, or cannot be written.
        """
        from qplug.api.text import plain
        from qplug.cli.report.formats import markdown, page
        from qplug.cli.report.run import summary_tables
        from qplug.cli.report.screen import Table

        tables = summary_tables(self, convention(DEFAULT))
        tables += [Table("Warnings", notes=self.warnings)] if self.warnings else []
        if path is None:
            return plain(tables)
        suffix = Path(path).suffix.lower()
        if suffix not in REPORTS:
            raise InputError(f"expected a name in {' or '.join(REPORTS)}, received {Path(path).name!r}", where="report")
        check_file(Path(path), "path")
        headed = [table if table.columns or not table.rows else replace(table, columns=HEADS) for table in tables]
        title = f"{self.recipe.name}: {getattr(self.recipe.model, 'name', '')}"
        text = markdown(headed) if suffix == ".md" else page(headed, title) if suffix == ".html" else plain(tables)
        write_file(Path(path), text.encode())
        return text


def quantize(
    model: nn.Module,
    calibration: Iterable[Any],
    recipe: Recipe | str | Path | Mapping[str, Any] = "w8a8",
    *,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    evaluation: Iterable[Any] | None = None,
    task: Task | str | None = None,
    device: str | None = None,
    calibration_examples: int = MOST,
    registry: Registry | None = None,
    observers: Sequence[object] = (),
    cache: Cache | None = None,
) -> Quantized:
    """As ``qplug.pipeline.quantize.quantize``; the result can be saved, exported and reported."""
    result = quantize_in_memory(
        model,
        calibration,
        recipe,
        evaluate=evaluate,
        evaluation=evaluation,
        task=task,
        device=device,
        calibration_examples=calibration_examples,
        registry=registry,
        observers=observers,
        cache=cache,
    )
    found = Quantized(**{one.name: getattr(result, one.name) for one in fields(RunResult)})
    found.registry = registry
    return found


quantize.__doc__ = quantize_in_memory.__doc__


def _batches(examples: Any, keywords: Sequence[str]) -> Iterable[Any]:
    """The examples one by one, as the caller's loader yielded them."""
    for index in range(len(examples)):
        item = examples[index][0][None]
        if not keywords:
            yield item
        else:
            parts = (item,) if len(keywords) == 1 else item.unbind(1)
            yield dict(zip(keywords, parts, strict=True))
