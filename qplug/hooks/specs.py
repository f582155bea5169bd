"""The hook specifications: the reference manual of what a plugin can do. There is no logic here.

Discovery hooks are implemented by a plugin's module, once a process. Run hooks are implemented by techniques, one
instance for each step of the recipe, and are called in the order of the recipe (``trylast`` moves behind it). The core
seeds torch, times, and names the technique, its plugin and version where one raises. Write no default values in the
parameters of an implementation (pluggy does not pass them), and list only the parameters that you use.
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
"""Major and minor version of the hooks in this file. A new major version changes or removes a hook; a new minor version
adds one. A plugin states the version that it was written for as ``qplug_hook_api = "1"`` in its module. A plugin that
states none counts as written for version 1. One for another major version is refused when plugins are discovered."""

PROJECT = "qplug"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class DiscoverySpecs:
    """What a plugin's module offers. The entry point's name is the prefix of its techniques."""

    @hookspec
    def qplug_techniques(self) -> Iterable[type[Technique]]:  # type: ignore[empty-body]
        """The plugin's techniques, each tagged ``<entry point>.<name>``. Called once, when plugins are discovered.

        Importing the plugin must not import torch: import it inside the methods that need it.

        Example::

            @hookimpl
            def qplug_techniques():
                return [MyTechnique]
        """

    @hookspec
    def qplug_models(self) -> Iterable[type[ModelSource]]:  # type: ignore[empty-body]
        """Model sources for ``model: {source: …}``. Called once, when plugins are discovered."""

    @hookspec
    def qplug_datasets(self) -> Iterable[type[DataSource]]:  # type: ignore[empty-body]
        """Data sources for ``data.*: {source: …}``. Called once, when plugins are discovered."""

    @hookspec
    def qplug_metrics(self) -> Iterable[Metric]:  # type: ignore[empty-body]
        """Further measurements of a run, written to ``metrics.json`` as ``<entry point>.<name>``."""

    @hookspec
    def qplug_backends(self) -> Mapping[str, BackendOffer]:  # type: ignore[empty-body]
        """Backends by name; each is imported when it is used.

        An offer also says what the backend cannot execute, so that a recipe that asks for it is refused at its line.

        Example::

            @hookimpl
            def qplug_backends():
                return {"mine": BackendOffer("my_backend.lower:MyBackend", bits=(4, 8))}
        """

    @hookspec
    def qplug_adapters(self) -> Iterable[Adapter]:  # type: ignore[empty-body]
        """Adapters that make a type of attention explicit, or a convolution or linear of one's own a plain one.

        Each replacement is checked against the original.
        """

    @hookspec
    def qplug_blocks(self) -> Iterable[str]:  # type: ignore[empty-body]
        """Classes whose instances are reconstructed as a whole, each as ``module:Class``, without importing them.

        These are transformer and residual blocks, called with a tensor with an entry for every image first, and giving
        such a tensor. What derives from one is a block too, and a block within a block belongs to it. Operations
        outside of all blocks are reconstructed one by one (see ``qplug_reconstruct``).

        Example::

            @hookimpl
            def qplug_blocks():
                return ["my_models.net:ResidualBlock"]
        """

    @hookspec
    def qplug_quantizers(self) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Quantizer classes by ``kind``, each as ``module:Class``, so that a stored plan can be read back."""


class RunSpecs:
    """What a technique does in a run, in the order in which the pipeline asks."""

    @hookspec(firstresult=True)
    def qplug_rewrite_norm(self, name: str, module: nn.Module) -> Rewrite | None:
        """Replace a norm (LayerNorm, BatchNorm, GroupNorm, RMSNorm, Affine) of the float model.

        Called for every norm, in model order, before anything else. Stops at the first result that is not ``None``;
        ``None`` leaves the norm to the next technique, and as it is where no one takes it. ``preserves=False`` asks for
        a fine-tune: all parameters of the model are trained then, and the run warns where the recipe has none. With
        ``preserves=True`` the core checks that the model's output is the same to 1e-4, and refuses to go on where it is
        not. The new module comes to the model's device, and wherever the model holds the old one.

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

        Attention is explicit by then: its matmuls and its Softmax are modules. That of Swin and of BERT is a
        ``MaskedSoftmax``, called with a mask behind the scores where there is one; what takes its place adds it.

        Example::

            @hookimpl
            def qplug_rewrite_module(self, name, module):
                if name.endswith("token_mixer"):
                    return Rewrite(GroupedMixer(module, groups=4), preserves=True)
        """

    @hookspec
    def qplug_calibrate(self, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]) -> None:
        """Look at the whole float model and at every calibration image, for what statistics of sites do not tell.

        Called once for each technique that implements it, before its first decision: before its own ``qplug_smooth``
        where it has that hook, and after all smoothing where it has not, so that the model is as the techniques before
        left it. ``model`` is a copy (eval mode, attention explicit, BatchNorms folded) that belongs to the technique.
        ``images`` gives the same batches at every iteration, (B, C, H, W) float32 on the model's device, and has their
        number as its length. ``specs`` says what the recipe asks of each site that it quantizes. What was found is
        remembered in ``self``; the answer is always ``None``.

        Example::

            @hookimpl
            def qplug_calibrate(self, model, images, specs):
                self.norms = torch.cat([model(batch).norm(dim=1) for batch in images])
        """

    @hookspec
    def qplug_smooth(self, group: NormGroup, stats: SiteStats) -> Smoothing | None:
        """Move range from a norm's output into the weights that read it.

        Called for every group of a norm and its linears, once for each technique in recipe order; ``stats`` and
        ``group.weights`` already show what the techniques before did. ``stats`` are those of the norm's output,
        channels last, and ``group`` says what the recipe asks of it and of the weights. ``None`` leaves the group as it
        is. The core folds the result into the norm and the linears
        (making a bias where there is none) and refuses to go on where the model's output moves by more than 1e-4.

        Example::

            @hookimpl
            def qplug_smooth(self, group, stats):
                return Smoothing(shift=torch.zeros_like(stats.channel_max), scale=stats.channel_absmax ** 0.5)
        """

    @hookspec(firstresult=True)
    def qplug_allocate_bits(self, table: SqnrTable) -> Mapping[str, int] | None:
        """Choose bits for sites. Called once, after smoothing.

        ``table`` lists the sites that may change, their specification and, on demand, their statistics, the SQNR in dB
        of each at any bit width, fitted by this recipe's own range estimation, and what the model costs at any bits, by
        the accounting of ``metrics.json``. Return bits by site name; sites left
        out keep the bits of the recipe. ``None`` leaves the recipe's bits. Bits outside 2 … 16, bits that the recipe's
        backend does not have, and unknown sites are refused. ``Technique.allocates`` names the fields of the
        configuration that hold bits, so that such a recipe is refused before anything is computed.

        Example::

            @hookimpl
            def qplug_allocate_bits(self, table):
                return {site.name: 8 for site in table.sites if table.sqnr_db(site, 4) < 10.0}
        """

    @hookspec(firstresult=True)
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Range estimation: make the quantizer of one site at one bit width.

        Called for every site, and once more for every bit width that an allocator asks about; it must not depend on
        the order. ``stats`` holds ranges, moments and capped samples; see ``qplug.SiteStats``. Stops at the first
        result that is not ``None``; ``None`` means "not mine". A site that no technique takes is an error.

        Example::

            @hookimpl
            def qplug_make_quantizer(self, site, spec, stats):
                return QuantizerChoice(UniformQuantizer.from_range(stats.min, stats.max, spec), "min-max")
        """

    @hookspec(firstresult=True)
    def qplug_alternation_rounds(self, operands: Sequence[Site]) -> int | None:
        """How many times the operands of one operation are fitted again, each against the other as it is quantized.

        Called for every linear, convolution and matmul whose two operands are both quantized. 0, or ``None`` from
        everyone, fits each operand once, against the other in float. In each round ``qplug_make_quantizer`` is asked
        for the weight (or left operand) and then for the input (or right operand), with ``stats`` whose errors are
        those beside the other operand's present quantizer (``SiteStats.given``), so that every technique alternates.
        The first round's weight stands beside an input fitted against the float weight, and rounds end where nothing
        changes any more.

        Example::

            @hookimpl
            def qplug_alternation_rounds(self, operands):
                return 3
        """

    @hookspec(firstresult=True)
    def qplug_reconstruct(self, block: Block) -> Reconstruction | None:
        """Learn a block's quantizers so that its output comes near that of the float block.

        Called for every block in the order of execution, after every site has its quantizer: a transformer or residual
        block, or an operation that stands outside of all of them. Stops at the first result that is not ``None``;
        ``None`` leaves the block as it is. The core shows the block what the quantized part before it gives, and learns
        by Adam; gradients reach only the parameters of the learners. See ``qplug.training.reconstruction.config``.

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
        """Watch a run: called for every stage that starts, advances or ends. What it returns is not used."""
