"""What the stages of a run give each other, each with a type of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from qplug.core.examples import Examples
from qplug.core.types import Change, QuantSpec, Site
from qplug.data.stream import Stream
from qplug.models.batchnorm import Folding
from qplug.models.equivalence import EquivalenceCheck
from qplug.models.float_model import FloatModel
from qplug.models.in_memory import MemoryModel
from qplug.pipeline.answers import Outputs
from qplug.pipeline.specs import Specs
from qplug.quantization.plan import Plan
from qplug.quantization.sites import SiteMap
from qplug.quantization.sqnr_table import SqnrTable
from qplug.training.supervised.history import History

if TYPE_CHECKING:
    from qplug.pipeline.own_metrics import OwnMetrics
    from qplug.recipe import Recipe


@dataclass
class Inputs:
    """The float model and its data.

    Attributes:
        float_model: its module is on the device of the run, and stays as it is.
        made_by: the component that loaded the model; its code and configuration are part of cache keys.
        calibration: batches for every stage that looks at images without labels.
        evaluation, training: examples with labels, where there are any.
        files: text files by name that the run folder keeps for the model's architecture.
        outputs: shape of one image's outputs, such as (1000,); empty without calibration data.
        run_key: of the recipe, before anything ran; ``None`` where no run folder is written, or no key exists.
    """

    float_model: FloatModel
    made_by: object = None
    calibration: Stream | None = None
    evaluation: Examples | None = None
    training: Examples | None = None
    files: dict[str, str] = field(default_factory=dict)
    run_key: str | None = None
    outputs: tuple[int, ...] = ()
    own: OwnMetrics | None = None

    @property
    def in_memory(self) -> bool:
        """Whether a Python program gave the model, so that the result can be saved later."""
        return isinstance(self.made_by, MemoryModel)

    @property
    def batch_size(self) -> int:
        """Examples at a time; 0 without calibration data."""
        return self.calibration.batch_size if self.calibration is not None else 0

    @property
    def probe(self) -> Tensor | None:
        """A few calibration images, on which steps that preserve the function are checked."""
        return self.calibration.first(min(8, self.batch_size)) if self.calibration is not None else None

    @property
    def images(self) -> Stream:
        """The calibration batches of a run that has some."""
        assert self.calibration is not None
        return self.calibration


@dataclass
class RewrittenModel:
    """A copy of the float model that techniques rewrite; later stages change it in place.

    Attributes:
        module: in eval mode, on the device of the run.
        example: (1, …), the input with which it is traced.
        changes: what was rewritten, trained and folded, in order.
        equivalence: holds steps that preserve the function to it; ``None`` without calibration data.
        finetuned: a copy of the module after fine-tuning, where the recipe asks for it.
        trainings: the history of each training, by stage.
        unread: path → reason for every module whose products of activations could not be made explicit.
    """

    module: nn.Module
    example: Tensor
    changes: list[Change] = field(default_factory=list)
    equivalence: EquivalenceCheck | None = None
    finetuned: nn.Module | None = None
    trainings: dict[str, History] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


@dataclass
class PreparedSites:
    """What of the model can be quantized, and what the recipe asks of it.

    Attributes:
        site_map: every site, and the MACs that no site covers.
        specs: what the recipe asks, by site name.
        watched: the sites in scope, of which statistics are collected.
        folding: the BatchNorms that were folded, and those that were not.
        calls: module → its calls in one forward; of a calibrated one, as calibration saw them.
        refused: module with sites → the reason why the backend cannot hold it.
    """

    site_map: SiteMap
    specs: Specs
    watched: list[Site]
    folding: Folding
    calls: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> dict[str, QuantSpec]:
        """What the recipe asks of the watched sites, by name."""
        return {site.name: self.specs[site.name] for site in self.watched if site.name in self.specs}


@dataclass(frozen=True)
class BitAllocation:
    """Bits by site, and who chose them.

    Attributes:
        by: the technique, or ``recipe``.
        bits: site → bits, where they differ from the recipe's.
        table: the SQNRs that the allocator asked for.
    """

    by: str
    bits: Mapping[str, int] = field(default_factory=dict)
    table: SqnrTable | None = None


@dataclass
class Evaluation:
    """The quantized model, and its measurements.

    Attributes:
        model: lowered by the backend, in eval mode.
        metrics: by name, as ``metrics.json`` has them.
        outputs: of both models for every evaluation example, where there is evaluation data.
    """

    model: nn.Module
    metrics: dict[str, Any] = field(default_factory=dict)
    outputs: Outputs | None = None


@dataclass
class RunResult:
    """The outcome of a run.

    Attributes:
        recipe: as it was validated, defaults included.
        metrics: by name, as ``metrics.json`` has them; shares are fractions between 0 and 1.
        plan: every decision.
        sensitivity: site → bits → SQNR in dB, where an allocator asked.
        warnings: one sentence each.
        trainings: by stage, the history of each training that the recipe asks for.
        folder: the run folder, where one was written.
        model: the quantized module, in eval mode, on the device of the run.
        write: of a run in memory: writes its run folder.
        inputs: of a run in memory: its float model and data.
    """

    recipe: Recipe
    metrics: dict[str, Any]
    plan: Plan
    sensitivity: dict[str, dict[int, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    trainings: dict[str, History] = field(default_factory=dict)
    folder: Path | None = None
    model: nn.Module | None = field(default=None, repr=False)
    write: Callable[[Path], None] | None = field(default=None, repr=False)
    inputs: Inputs | None = field(default=None, repr=False)

    @property
    def float_macs(self) -> dict[str, int]:
        """Module → multiply-accumulates of one image that stay in float."""
        return self.plan.float_macs
