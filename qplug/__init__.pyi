"""The public names of qplug, each in this one place; they are imported when first used."""

from .api.analyze import inspect as inspect, sensitivity as sensitivity
from .api.compare import Comparison as Comparison, compare as compare
from .api.quantize import Quantized as Quantized, quantize as quantize
from .core.component import (
    Config as Config,
    DataSource as DataSource,
    ModelSource as ModelSource,
    Technique as Technique,
)
from .core.device import full_float32 as full_float32
from .core.errors import (
    EquivalenceError as EquivalenceError,
    InputError as InputError,
    ParityError as ParityError,
    PluginError as PluginError,
    QplugError as QplugError,
    RecipeError as RecipeError,
)
from .core.examples import Annotation as Annotation, Classes as Classes
from .core.task import Task as Task
from .core.types import (
    Adapter as Adapter,
    BackendOffer as BackendOffer,
    Event as Event,
    Extra as Extra,
    Granularity as Granularity,
    LossName as LossName,
    Metric as Metric,
    NormGroup as NormGroup,
    QuantSpec as QuantSpec,
    Rewrite as Rewrite,
    Site as Site,
    SiteKind as SiteKind,
    Smoothing as Smoothing,
    matches as matches,
)
from .core.version import __version__ as __version__
from .export.export_run import (
    Export as Export,
    export_run as export_run,
)
from .hooks.specs import hookimpl as hookimpl
from .models.attention import MatMul as MatMul
from .models.float_model import FloatModel as FloatModel, Preprocessing as Preprocessing
from .models.tracing import is_gelu as is_gelu
from .pipeline.load_run import load_quantized as load_quantized
from .pipeline.results import RunResult as RunResult
from .pipeline.run import run as run
from .quantization.backends import Lowering as Lowering
from .quantization.bit_allocation import (
    Limit as Limit,
    choose_bits as choose_bits,
)
from .quantization.calibration.hessian import (
    Trace as Trace,
    hessian_traces as hessian_traces,
)
from .quantization.calibration.statistics import SiteStats as SiteStats
from .quantization.choice import QuantizerChoice as QuantizerChoice
from .quantization.number_formats import make_quantizer as make_quantizer
from .quantization.plan import Decision as Decision, Plan as Plan
from .quantization.quantizers import (
    LogQuantizer as LogQuantizer,
    Quantizer as Quantizer,
    Region as Region,
    RegionQuantizer as RegionQuantizer,
    UniformQuantizer as UniformQuantizer,
)
from .quantization.quantizers.base import (
    clamp_ste as clamp_ste,
    fake_quantize as fake_quantize,
    round_ste as round_ste,
)
from .quantization.quantizers.grid import (
    evenly as evenly,
    grid_search as grid_search,
)
from .quantization.quantizers.search import line_search as line_search
from .quantization.sqnr_table import SqnrTable as SqnrTable
from .recipe import (
    Recipe as Recipe,
    load_recipe as load_recipe,
)
from .training.learners import (
    LearnedStepSize as LearnedStepSize,
    Learner as Learner,
    bit_penalty as bit_penalty,
    learned_step_sizes as learned_step_sizes,
    rectified_sigmoid as rectified_sigmoid,
    soft_bit_logits as soft_bit_logits,
)
from .training.reconstruction.config import Block as Block, Rate as Rate, Reconstruction as Reconstruction
from .training.reconstruction.losses import OutputLoss as OutputLoss, Unit as Unit
from .training.reconstruction.schedule import Schedule as Schedule
