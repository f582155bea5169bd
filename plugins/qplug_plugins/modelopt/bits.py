"""ModelOpt's ``auto_quantize``: a search of the bit width of every layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from qplug_plugins.modelopt.library import MODELOPT, SLOTS, axis_of, expressible, quiet

import qplug
from qplug import Event, Granularity, InputError, QuantSpec, SqnrTable, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn


class AutoQuantize(Technique):
    """One bit width for weight and input of each layer, by ``mtq.auto_quantize``.

    ModelOpt scores every candidate of every layer by the gradients of a loss, or by the KL divergence of the logits.
    The loss is the cross-entropy against the float model's own top-1. A linear program chooses the candidates, with
    ``bits`` as the average bit width of weights. Float is not a candidate, since the recipe lists the layers in float.
    Linears and convolutions take part unless an override fixes their bits; operands of matmuls keep the recipe's bits.
    """

    paper = "NVIDIA ModelOpt, mtq.auto_quantize"
    needs = (MODELOPT,)
    allocates = ("candidates",)

    class Config(qplug.Config):
        """The budget and the candidates."""

        use: Literal["modelopt.auto_quantize"] = Field("modelopt.auto_quantize", description="name of the technique")
        bits: float = Field(6.0, ge=2.0, le=16.0, description="average bits of weights")
        candidates: tuple[int, ...] = Field((4, 6, 8), min_length=2, description="bits that a layer may have")
        method: Literal["gradient", "kl_div"] = Field("gradient", description="score of a candidate")

        @model_validator(mode="after")
        def _possible(self) -> AutoQuantize.Config:
            if not all(2 <= bits <= 16 for bits in self.candidates):
                raise ValueError(f"candidates must have 2 to 16 bits, received {list(self.candidates)}")
            if not min(self.candidates) <= self.bits <= max(self.candidates):
                raise ValueError(f"bits {self.bits:g} lie outside of the candidates {list(self.candidates)}")
            return self

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._calibration: tuple[nn.Module, Iterable[Tensor]] | None = None

    @hookimpl
    def qplug_calibrate(self, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]) -> None:
        """Store the model and the images for ``qplug_allocate_bits``."""
        self._calibration = (model, images)

    @hookimpl
    def qplug_allocate_bits(self, table: SqnrTable) -> Mapping[str, int] | None:
        """Let ModelOpt search the bits, in the first call only."""
        free = {site.name: site for site in table.sites if expressible(site.role, table.specs[site.name])}
        layers = [site.module for site in free.values() if site.role == "weight"]
        layers = [layer for layer in layers if f"{layer}.input" in free]
        if self._calibration is None or not layers:
            return None
        (model, images), self._calibration = self._calibration, None
        chosen = _search(
            model, images, {layer: table.specs[f"{layer}.weight"] for layer in layers}, self.config, self.notes
        )
        return {f"{layer}.{role}": bits for layer, bits in chosen.items() for role in SLOTS}

    @hookimpl
    def qplug_observe(self, event: Event) -> None:
        """Release the model and the images if another technique allocated the bits."""
        if (event.stage, event.phase) == ("bits", "end"):
            self._calibration = None


def _search(
    model: nn.Module, images: Iterable[Tensor], layers: dict[str, QuantSpec], config: Any, notes: list[str]
) -> dict[str, int]:
    """Layer → bits; ``layers`` holds the specification of each layer's weight."""
    import torch
    from torch.nn import functional as F

    def loss(logits: Tensor, _: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), logits.detach().argmax(-1).flatten())

    count = sum(1 for _ in images)
    known = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
    others = [name for name in known if name not in layers]
    alike: dict[Granularity, list[str]] = {}
    for layer, spec in layers.items():
        alike.setdefault(spec.granularity, []).append(layer)
    widths = sorted(set(config.candidates))
    formats = {granularity: [_format(bits, granularity) for bits in widths] for granularity in alike}
    with quiet(layers, notes), torch.enable_grad():
        import modelopt.torch.quantization as mtq

        model, state = mtq.auto_quantize(
            model.requires_grad_(True),
            {"effective_bits": config.bits, "cost": {"excluded_module_name_patterns": others}},
            quantization_formats=next(iter(formats.values())),
            data_loader=images,
            forward_step=lambda model, batch: model(batch),
            loss_func=loss if config.method == "gradient" else None,
            disabled_layers=others,
            num_calib_steps=count,
            num_score_steps=count,
            method=config.method,
            module_search_spaces=[
                {
                    "module_name_patterns": names,
                    "quantization_formats": formats[granularity],
                    "allow_no_quant": False,
                }
                for granularity, names in alike.items()
            ],
        )
    if not state["best"]["is_satisfied"]:
        raise InputError(
            f"ModelOpt found no allocation of {widths} bits whose average is {config.bits:g}",
            where="modelopt.auto_quantize",
            fix="raise bits, or add a smaller candidate",
        )
    modules: dict[str, Any] = {layer: model.get_submodule(layer) for layer in layers}
    return {layer: int(module.weight_quantizer.num_bits) for layer, module in modules.items()}


def _format(bits: int, granularity: Granularity) -> dict[str, Any]:
    """ModelOpt's integers of ``bits`` bits for the weight, with the recipe's granularity, and the input of a layer."""
    weight = {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": axis_of(granularity)}}
    input_ = {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": bits, "axis": None}}
    return {"quant_cfg": [{"quantizer_name": "*", "enable": False}, weight, input_], "algorithm": "max"}
