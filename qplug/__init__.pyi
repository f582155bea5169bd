"""The public names of qplug, each in this one place; they are imported when first used."""

from .core.component import (
    Config as Config,
)
from .core.component import (
    DataSource as DataSource,
)
from .core.component import (
    ModelSource as ModelSource,
)
from .core.component import (
    Technique as Technique,
)
from .core.device import full_float32 as full_float32
from .core.errors import (
    GuardError as GuardError,
)
from .core.errors import (
    InputError as InputError,
)
from .core.errors import (
    ParityError as ParityError,
)
from .core.errors import (
    PluginError as PluginError,
)
from .core.errors import (
    QplugError as QplugError,
)
from .core.errors import (
    RecipeError as RecipeError,
)
from .core.types import (
    Adapter as Adapter,
)
from .core.types import (
    BackendOffer as BackendOffer,
)
from .core.types import (
    Choice as Choice,
)
from .core.types import (
    Event as Event,
)
from .core.types import (
    Extra as Extra,
)
from .core.types import (
    Granularity as Granularity,
)
from .core.types import (
    LossName as LossName,
)
from .core.types import (
    Metric as Metric,
)
from .core.types import (
    NormGroup as NormGroup,
)
from .core.types import (
    QuantSpec as QuantSpec,
)
from .core.types import (
    Rewrite as Rewrite,
)
from .core.types import (
    Site as Site,
)
from .core.types import (
    SiteKind as SiteKind,
)
from .core.types import (
    Smoothing as Smoothing,
)
from .core.types import (
    matches as matches,
)
from .core.version import __version__ as __version__
from .export.run import (
    Export as Export,
)
from .export.run import (
    export_run as export_run,
)
from .hooks.specs import hookimpl as hookimpl
from .load import load_quantized as load_quantized
from .models.tracing import is_gelu as is_gelu
from .pipeline.run import (
    RunResult as RunResult,
)
from .pipeline.run import (
    run as run,
)
from .quantization.bit_allocation import (
    Limit as Limit,
)
from .quantization.bit_allocation import (
    choose_bits as choose_bits,
)
from .quantization.calibration.hessian import (
    Trace as Trace,
)
from .quantization.calibration.hessian import (
    hessian_traces as hessian_traces,
)
from .quantization.calibration.statistics import SiteStats as SiteStats
from .quantization.plan import Plan as Plan
from .quantization.quantizers import (
    LogQuantizer as LogQuantizer,
)
from .quantization.quantizers import (
    Quantizer as Quantizer,
)
from .quantization.quantizers import (
    Region as Region,
)
from .quantization.quantizers import (
    RegionQuantizer as RegionQuantizer,
)
from .quantization.quantizers import (
    UniformQuantizer as UniformQuantizer,
)
from .quantization.quantizers.grid import (
    evenly as evenly,
)
from .quantization.quantizers.grid import (
    grid_search as grid_search,
)
from .quantization.quantizers.search import line_search as line_search
from .quantization.sqnr_table import SqnrTable as SqnrTable
from .recipe import (
    Recipe as Recipe,
)
from .recipe import (
    load_recipe as load_recipe,
)
from .training.learners import (
    LearnedStep as LearnedStep,
)
from .training.learners import (
    Learner as Learner,
)
from .training.learners import (
    bit_penalty as bit_penalty,
)
from .training.learners import (
    learned_steps as learned_steps,
)
from .training.learners import (
    rectified_sigmoid as rectified_sigmoid,
)
from .training.learners import (
    soft_bit_logits as soft_bit_logits,
)
from .training.reconstruction import (
    Block as Block,
)
from .training.reconstruction import (
    OutputLoss as OutputLoss,
)
from .training.reconstruction import (
    Rate as Rate,
)
from .training.reconstruction import (
    Reconstruction as Reconstruction,
)
from .training.reconstruction import (
    Unit as Unit,
)
from .training.reconstruction.schedule import Schedule as Schedule
