"""The hook specifications: the reference manual of what a plugin can do. There is no logic here.

A plugin's module implements discovery hooks; they are called once in a process. A technique implements run hooks. Each
step of a recipe is one instance of a technique, and hooks are called in the order of the recipe (``trylast`` moves a
step behind it). qplug seeds torch before each call, times it, and names the technique, its plugin and its version where
one raises.

An implementation is marked with ``qplug.hookimpl``. It lists only the parameters that it uses, and gives them no
default values: pluggy does not pass those. Names that begin with ``qplug_`` are kept for hooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qplug.core.component import DataSource, ModelSource, Technique
    from qplug.core.types import Adapter, BackendOffer, Event, Metric, NormGroup, QuantSpec, Rewrite, Site, Smoothing
    from qplug.quantization.calibration.statistics import SiteStats
    from qplug.quantization.choice import QuantizerChoice
    from qplug.quantization.sqnr_table import SqnrTable
    from qplug.training.reconstruction.config import Block, Reconstruction

HOOK_API = (1, 0)
"""The major and minor version of these hooks. A new major version changes or removes a hook; a new minor one adds one.

A plugin states the version that it was written for, as ``qplug_hook_api = "1"`` in its module. A plugin that states
none counts as written for version 1. A plugin for another major version is refused when plugins are discovered.
"""

PROJECT = "qplug"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class DiscoverySpecs:
    """What a plugin's module offers. The entry point's name is the prefix of its techniques and metrics.

    Each hook is called once, when plugins are discovered. Importing the module must not import torch: import it inside
    the methods that need it. Two plugins that offer the same name are both refused, and qplug's own names stay its own.
    """

    @hookspec
    def qplug_techniques(self) -> Iterable[type[Technique]]:  # type: ignore[empty-body]
        """Offer techniques: the steps that recipes list under ``techniques``.

        Each is a class whose ``Config`` has the tag ``use: <entry point>.<name>``.
        ``qplug.testing.TechniqueContract`` tests it.

        Example::

            @hookimpl
            def qplug_techniques():
                return [MyTechnique]
        """

    @hookspec
    def qplug_models(self) -> Iterable[type[ModelSource]]:  # type: ignore[empty-body]
        """Offer model sources: where ``model: {source: …}`` of a recipe gets its float model.

        Each is a class whose ``Config`` has the tag ``source``, and whose ``load`` returns a ``qplug.FloatModel``.
        ``qplug.testing.ModelSourceContract`` tests it.

        Example::

            class Small(qplug.ModelSource):
                \"\"\"A small network.\"\"\"

                class Config(qplug.Config):
                    source: Literal["my_small"] = "my_small"

                def load(self):
                    preprocessing = qplug.Preprocessing((3, 32, 32), (0.5,) * 3, (0.25,) * 3, "bicubic", 1.0)
                    return qplug.FloatModel.of(make_network(), "small", preprocessing)

            @hookimpl
            def qplug_models():
                return [Small]
        """

    @hookspec
    def qplug_datasets(self) -> Iterable[type[DataSource]]:  # type: ignore[empty-body]
        """Offer data sources: where ``data.*: {source: …}`` of a recipe gets its examples.

        Each is a class whose ``Config`` has the tag ``source``, and whose ``open`` returns the examples that a seed
        chooses. An example is a decoded PIL image with its label, or ``None`` without one, which suffices for
        calibration. ``qplug.core.examples.Examples`` lists the methods of what ``open`` returns.
        ``qplug.testing.DataSourceContract`` tests it.

        Example::

            class Photos(qplug.DataSource):
                \"\"\"Photographs of one folder.\"\"\"

                class Config(qplug.Config):
                    source: Literal["my_photos"] = "my_photos"
                    path: str = Field(description="a folder")

                def open(self, seed):
                    return PhotoExamples(self.config.path, seed)

            @hookimpl
            def qplug_datasets():
                return [Photos]
        """

    @hookspec
    def qplug_metrics(self) -> Iterable[Metric]:  # type: ignore[empty-body]
        """Offer metrics: further measurements of every run that evaluates.

        Each gets the float logits, the quantized logits and the labels, and returns a number. ``metrics.json`` has it
        as ``<entry point>.<name>``. A metric that raises, or returns no number, has no value there; the run warns, and
        goes on. ``qplug.testing.MetricContract`` tests it.

        Example::

            def distance(float_logits, logits, labels):
                return float((float_logits - logits).norm(dim=1).mean())

            @hookimpl
            def qplug_metrics():
                return [Metric("distance", distance)]
        """

    @hookspec
    def qplug_tasks(self) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Offer tasks, by their names: what a model's outputs and labels are, and how they are judged.

        Each is written as ``module:Class``, a subclass of ``qplug.Task`` that needs no arguments, and imported when a
        model names it: ``model: {source: import, task: NAME}``, ``qplug.quantize(…, task=NAME)``, or
        ``FloatModel.of(…, task_name=NAME)``. A model source may also give a task object with options of its own
        (``FloatModel.of(…, task=…)``). ``qplug.testing.TaskContract`` tests it.

        Example::

            @hookimpl
            def qplug_tasks():
                return {"depth": "my_plugin.depth:Depth"}
        """

    @hookspec
    def qplug_backends(self) -> Mapping[str, BackendOffer]:  # type: ignore[empty-body]
        """Offer backends, by the name that ``backend`` of a recipe writes. A backend executes quantized operations.

        Each is imported when it is used. An offer also says what the backend cannot execute, so that a recipe that asks
        for it is refused at its line. ``qplug.Lowering`` is the base of a backend.
        ``qplug.testing.BackendContract`` tests it.

        Example::

            @hookimpl
            def qplug_backends():
                return {"mine": BackendOffer("my_backend.lower:MyBackend", bits=(4, 8))}
        """

    @hookspec
    def qplug_adapters(self) -> Iterable[Adapter]:  # type: ignore[empty-body]
        """Offer adapters: how a module that qplug does not know becomes one whose operations can be quantized.

        An adapter makes the matmuls of a type of attention explicit, or turns a convolution or linear of one's own into
        a plain one. The output of each replacement is checked against the original's.

        Example::

            def explicit(attention):
                return MyExplicitAttention(attention) if attention.bias is None else None

            @hookimpl
            def qplug_adapters():
                return [Adapter("my_models.net:Attention", explicit)]
        """

    @hookspec
    def qplug_blocks(self) -> Iterable[str]:  # type: ignore[empty-body]
        """Offer block classes: those whose instances are reconstructed as a whole.

        Each is written as ``module:Class``, and imported only with a model that uses it. Blocks are transformer and
        residual blocks. A block takes a tensor whose first axis counts images, and returns such a tensor. What derives
        from a block class is a block too. A block within a block belongs to the outer one. Operations outside of all
        blocks are reconstructed one by one (see ``qplug_reconstruct``).

        Example::

            @hookimpl
            def qplug_blocks():
                return ["my_models.net:ResidualBlock"]
        """

    @hookspec
    def qplug_quantizers(self) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Offer quantizer classes by their ``kind``, so that a stored plan can be read back.

        Each is written as ``module:Class``, and imported when a plan names its kind. Offer a class that your techniques
        define; those of qplug are offered already. ``qplug.testing.QuantizerContract`` tests it.

        Example::

            @hookimpl
            def qplug_quantizers():
                return {"mine.halves": "my_plugin.halves:Halves"}
        """


class RunSpecs:
    """What a technique does in a run, in the order in which the pipeline asks."""

    @hookspec(firstresult=True)
    def qplug_rewrite_norm(self, name: str, module: nn.Module) -> Rewrite | None:
        """Replace a norm (LayerNorm, BatchNorm, GroupNorm, RMSNorm, Affine) of the float model.

        Called for every norm, in model order, before anything else. The first result that is not ``None`` ends the
        calls. ``None`` leaves the norm to the next technique; a norm that none takes stays as it is.

        With ``preserves=True``, qplug checks that the model's output stays the same to 1e-4, and refuses to go on where
        it does not. ``preserves=False`` asks for a fine-tune of all parameters; the run warns where the recipe has
        none. The new module moves to the model's device, and to every place where the model holds the old one.

        Example::

            @hookimpl
            def qplug_rewrite_norm(self, name, module):
                if type(module).__name__ == "Affine":
                    return Rewrite(nn.LayerNorm(module.alpha.numel()), preserves=False)
        """

    @hookspec(firstresult=True)
    def qplug_rewrite_activation(self, name: str, module: nn.Module) -> Rewrite | None:
        """Activation bounding: replace a ReLU, GELU, SiLU, … by a bounded one. Called as ``qplug_rewrite_norm`` is.

        Example::

            @hookimpl
            def qplug_rewrite_activation(self, name, module):
                return Rewrite(nn.ReLU6(), preserves=False, reason="bounded to [0, 6]")
        """

    @hookspec(firstresult=True)
    def qplug_rewrite_module(self, name: str, module: nn.Module) -> Rewrite | None:
        """Replace any other module, after norms and activations. Called as ``qplug_rewrite_norm`` is.

        Attention is explicit by then: its matmuls and its Softmax are modules. The Softmax of Swin and of BERT is a
        ``MaskedSoftmax``. Where there is a mask, it is called with the mask behind the scores. A module in its place
        adds the mask itself.

        Example::

            @hookimpl
            def qplug_rewrite_module(self, name, module):
                if name.endswith("token_mixer"):
                    return Rewrite(GroupedMixer(module, groups=4), preserves=True)
        """

    @hookspec
    def qplug_calibrate(self, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]) -> None:
        """Look at the whole float model and at every calibration image, for what statistics of sites do not tell.

        Called once for each technique that implements it, in the stage of smoothing. A technique with ``qplug_smooth``
        is called before its own smoothing; any other after all smoothing, before bits are allocated.

        ``model`` is a copy that belongs to the technique: in eval mode, with attention explicit and BatchNorms folded.
        ``images`` gives the same batches at every iteration, each (B, C, H, W) float32 on the model's device. Its
        length is the number of batches. ``specs`` says what the recipe asks of each site that it quantizes. The
        technique remembers in ``self`` what it found; the result is always ``None``.

        Example::

            @hookimpl
            def qplug_calibrate(self, model, images, specs):
                self.norms = torch.cat([model(batch).norm(dim=1) for batch in images])
        """

    @hookspec
    def qplug_smooth(self, group: NormGroup, stats: SiteStats) -> Smoothing | None:
        """Smoothing: move range from a norm's output into the weights that read it.

        Called for every group of a norm and its linears, once for each technique in recipe order. ``stats`` and
        ``group.weights`` already show what the techniques before did. ``stats`` are those of the norm's output,
        channels last. ``group`` says what the recipe asks of the output and of the weights. ``None`` leaves the group
        as it is.

        qplug folds the result into the norm and the linears, and makes a bias where there is none. It refuses to go on
        where the model's output moves by more than 1e-4.

        Example::

            @hookimpl
            def qplug_smooth(self, group, stats):
                return Smoothing(shift=torch.zeros_like(stats.channel_max), scale=stats.channel_absmax ** 0.5)
        """

    @hookspec(firstresult=True)
    def qplug_allocate_bits(self, table: SqnrTable) -> Mapping[str, int] | None:
        """Bit allocation: choose the bits of sites. Called once, after smoothing.

        ``table`` lists the sites that may change, with their specifications. On demand it gives a site's statistics,
        and its SQNR in dB at any bit width under the quantizer that this recipe would make. It also gives what the
        model costs at any bits, counted as in ``metrics.json``.

        The result is a mapping from the names of sites to bits. Sites that it leaves out keep the bits of the recipe,
        and ``None`` leaves them all. Bits outside 2 … 16, bits that the recipe's backend does not have, and unknown
        sites are refused. ``Technique.allocates`` names the fields of the configuration that hold bits, so that a
        backend that lacks them is found before anything is computed.

        Example::

            @hookimpl
            def qplug_allocate_bits(self, table):
                return {site.name: 8 for site in table.sites if table.sqnr_db(site, 4) < 10.0}
        """

    @hookspec(firstresult=True)
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Range estimation: make the quantizer of one site at one bit width.

        Called for every site, and again for every bit width that an allocator asks about. The result must not depend on
        the order of calls. ``stats`` holds ranges, moments and samples of limited size (see ``qplug.SiteStats``). The
        first result that is not ``None`` ends the calls, and ``None`` leaves the site to the next technique. A site
        that no technique takes is an error.

        The quantizer has the bits of ``spec``, and its scales broadcast with the site's shape. qplug tries it on a part
        of the sample, and names technique and site where it fails.

        Example::

            @hookimpl
            def qplug_make_quantizer(self, site, spec, stats):
                return QuantizerChoice(UniformQuantizer.from_range(stats.min, stats.max, spec), "min-max")
        """

    @hookspec(firstresult=True)
    def qplug_alternation_rounds(self, operands: Sequence[Site]) -> int | None:
        """Alternation: say how often the two operands of an operation are fitted again, each against the other.

        Called for every linear, convolution and matmul whose two operands are both quantized. With 0, or ``None`` from
        every technique, each operand is fitted once, against the other in float.

        In each round ``qplug_make_quantizer`` is asked for the weight (or left operand), then for the input (or right
        operand). The errors of ``stats`` are then those beside the other operand's present quantizer
        (``SiteStats.given``), so that every technique alternates. The first round's weight stands beside an input that
        was fitted against the float weight. Rounds end where nothing changes any more.

        Example::

            @hookimpl
            def qplug_alternation_rounds(self, operands):
                return 3
        """

    @hookspec(firstresult=True)
    def qplug_reconstruct(self, block: Block) -> Reconstruction | None:
        """Reconstruction: learn a block's quantizers so that its output comes near that of the float block.

        Called for every block in the order of execution, after every site has its quantizer. A block is a transformer
        or residual block, or an operation that stands outside of all of them. The first result that is not ``None``
        ends the calls; ``None`` leaves the block as it is.

        qplug gives the block the outputs of the quantized part before it, and learns by Adam. Gradients reach only the
        parameters of the learners, and each learner has at least one. Where the block's error grew, the block keeps the
        quantizers that it had, and the reasons in the plan say so. ``qplug.training.reconstruction.config`` describes
        the types.

        Example::

            @hookimpl
            def qplug_reconstruct(self, block):
                steps = {
                    d.site.name: LearnedStepSize(d.quantizer) for d in block.decisions if not d.site.kind.is_weight
                }
                return Reconstruction(steps, rates={"step_sizes": Rate(4e-5, cosine=True)}, iterations=1000)
        """

    @hookspec
    def qplug_observe(self, event: Event) -> None:
        """Watch a run: called for every stage that starts, advances or ends. What it returns is not used.

        Observers implement it too: objects that are given to ``qplug.run(recipe, observers=[…])``.

        Example::

            @hookimpl
            def qplug_observe(self, event):
                print(event.stage, event.phase, event.done, event.total)
        """
