"""ModelOpt's ``auto_quantize``: a width for every layer, by its own search."""

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
    """Bits of weight and input together, layer by layer, by ``mtq.auto_quantize``.

    ModelOpt scores every candidate of every layer by the gradients of a loss, here the cross-entropy against the float
    model's own top-1, or by the KL divergence of the logits, and chooses by a linear program under which the weights
    have ``bits`` bits on average. Layers that must stay in float are none of its choices here, as a recipe says which
    do. It chooses for linears and convolutions whose bits no override fixes; the operands of matmuls keep the recipe's.
    """

    paper = "NVIDIA ModelOpt, mtq.auto_quantize"
    needs = (MODELOPT,)
    allocates = ("candidates",)

    class Config(qplug.Config):
        """The budget and the choices."""

        use: Literal["modelopt.auto_quantize"] = Field(
            "modelopt.auto_quantize", description="which technique this step is"
        )
        bits: float = Field(6.0, ge=2.0, le=16.0, description="bits of a weight on average, in bits")
        candidates: tuple[int, ...] = Field((4, 6, 8), min_length=2, description="bits that a layer may have, in bits")
        method: Literal["gradient", "kl_div"] = Field("gradient", description="what scores a candidate")

        @model_validator(mode="after")
        def _possible(self) -> AutoQuantize.Config:
            if not all(2 <= bits <= 16 for bits in self.candidates):
                raise ValueError(f"candidates must have 2 to 16 bits, received {list(self.candidates)}")
            if not min(self.candidates) <= self.bits <= max(self.candidates):
                raise ValueError(f"bits {self.bits:g} lie outside of the candidates {list(self.candidates)}")
            return self

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.seen: tuple[nn.Module, Iterable[Tensor]] | None = None

    @hookimpl
    def qplug_calibrate(self, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]) -> None:
        """Keep the model and the images until the bits are asked for."""
        self.seen = (model, images)

    @hookimpl
    def qplug_allocate_bits(self, table: SqnrTable) -> Mapping[str, int] | None:
        """Let ModelOpt search, once."""
        free = {site.name: site for site in table.sites if expressible(site.role, table.specs[site.name])}
        layers = [site.module for site in free.values() if site.role == "weight"]
        layers = [layer for layer in layers if f"{layer}.input" in free]
        if self.seen is None or not layers:
            return None
        (model, images), self.seen = self.seen, None
        chosen = _search(
            model, images, {layer: table.specs[f"{layer}.weight"] for layer in layers}, self.config, self.notes
        )
        return {f"{layer}.{role}": bits for layer, bits in chosen.items() for role in SLOTS}

    @hookimpl
    def qplug_observe(self, event: Event) -> None:
        """Let go of the model and the images where another technique chose the bits."""
        if (event.stage, event.phase) == ("bits", "end"):
            self.seen = None


def _search(
    model: nn.Module, images: Iterable[Tensor], layers: dict[str, QuantSpec], config: Any, notes: list[str]
) -> dict[str, int]:
    """Layer → bits; ``layers`` holds what the recipe asks of the weight of each."""
    import torch
    from torch.nn import functional as F

    def loss(logits: Tensor, _: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), logits.detach().argmax(-1).flatten())

    count = sum(1 for _ in images)
    known = [name for name, one in model.named_modules() if isinstance(one, (torch.nn.Linear, torch.nn.Conv2d))]
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
            f"ModelOpt finds no bits from {widths} whose average is {config.bits:g}",
            where="modelopt.auto_quantize",
            fix="raise bits, or add a smaller candidate",
        )
    found: dict[str, Any] = {layer: model.get_submodule(layer) for layer in layers}
    return {layer: int(one.weight_quantizer.num_bits) for layer, one in found.items()}


def _format(bits: int, granularity: Granularity) -> dict[str, Any]:
    """ModelOpt's integers of ``bits`` bits for a layer's weight, with scales as the recipe asks, and its input."""
    weight = {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": axis_of(granularity)}}
    given = {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": bits, "axis": None}}
    return {"quant_cfg": [{"quantizer_name": "*", "enable": False}, weight, given], "algorithm": "max"}
