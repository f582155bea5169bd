"""HAWQ-V3's bit allocation: the least Σ trace·‖ΔW‖² within limits on size, bit operations and latency."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from qplug_plugins.hawq import latency
from qplug_plugins.hawq.programme import Bound, Totals, solve

import qplug
from qplug import QuantSpec, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qplug import Site, SqnrTable

Amount = Annotated[float, Field(gt=0.0)] | Annotated[str, Field(pattern=r"^(100|\d{1,2})(\.\d+)?%$")]
LIMITS = ("size_mb", "bops_g", "latency_ms")


class HawqV3(Technique):
    """One bit width per layer, for its weight and its input, by an integer programme on Hessian traces.

    min Σ Ω_i(b_i), Ω_i(b) = tr(H_i)/n_i·‖Q_b(W_i) − W_i‖², within the limits on the model's size, its bit operations
    and the sum of its layers' latencies. H_i is the Hessian of the loss for the n_i elements of W_i. Its trace is
    Hutchinson's estimate by vectors of random signs (HAWQ-V2). It ends when the running mean of every layer changes by
    at most ``tolerance``. Q_b is the quantizer of b bits by the recipe's own range estimation.

    Bits are allocated before range estimation, reconstruction and training, so they apply to all of them. The recipe's
    overrides fix the first and last layer, as in the paper; both count towards the limits.

    Deviations: the loss is the cross-entropy against the float model's own top-1, without labels [ours]. A negative
    estimate of a trace counts as zero, because an error cannot be a gain [ours]. Layers joined by an addition may have
    different bits, since additions are in float here [ours]. Limits apply to the whole model; the authors' code
    excludes the first and last layer [ours]. Operands of attention's matmuls have no weight and keep the recipe's bits
    [ours], as does an input whose bits an override fixes [ours].
    """

    paper = "Yao et al. 2021, HAWQ-V3, section 3.4; Dong et al. 2020, HAWQ-V2, Eq. 8 for the trace"
    allocates = ("candidates",)

    class Config(qplug.Config):
        """The candidates, the limits, and the estimation of traces."""

        use: Literal["hawq.hawq_v3"] = Field("hawq.hawq_v3", description="name of the technique")
        candidates: tuple[Annotated[int, Field(ge=2, le=16)], ...] = Field(
            (4, 8), min_length=2, description="bits that a layer may have"
        )
        size_mb: Amount | None = Field(
            None, description="limit of the model's size, in MB, or as 50% between all fewest and all most bits"
        )
        bops_g: Amount | None = Field(
            None, description="limit of bit operations per image, in 10^9, or as 50% between fewest and most bits"
        )
        latency_ms: Amount | None = Field(
            None, description="limit of the sum of latencies, in milliseconds, or as 50% between fewest and most bits"
        )
        accounting: Literal["full", "q-mlp", "hawq"] = Field(
            "hawq", description="the convention by which size and bit operations are counted"
        )
        latencies: str | latency.Table | None = Field(
            None,
            description="layer → bits → milliseconds, or a JSON or YAML file of it; 32 bits for a layer in float",
        )
        probes: int = Field(64, ge=1, le=10_000, description="largest number of vectors of random signs")
        tolerance: float = Field(1e-3, ge=0.0, le=1.0, description="relative change of converged running means")
        slice_size: int = Field(8, ge=1, description="batch size for second derivatives")

        @field_validator("latencies", mode="before")
        @classmethod
        def _read(cls, value: object) -> object:
            """Read the table into the resolved recipe, so that a run's key depends on its content."""
            return latency.read(value)

        @model_validator(mode="after")
        def _possible(self) -> HawqV3.Config:
            if all(getattr(self, name) is None for name in LIMITS):
                raise ValueError(f"expected a limit, one of {', '.join(LIMITS)}, received none")
            if (self.latency_ms is None) != (self.latencies is None):
                raise ValueError("latency_ms, the limit, and latencies, the table, need each other; give both")
            if len(set(self.candidates)) < 2:
                raise ValueError(f"expected two different candidates or more, received {list(self.candidates)}")
            return self

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._calibration: tuple[nn.Module, Iterable[Tensor], Mapping[str, QuantSpec]] | None = None

    @hookimpl
    def qplug_calibrate(self, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]) -> None:
        """Store model and images for ``qplug_allocate_bits``, which receives the layers."""
        self._calibration = (model, images, specs)

    @hookimpl
    def qplug_allocate_bits(self, table: SqnrTable) -> Mapping[str, int] | None:
        """Estimate the traces, in the first call only, and solve the integer programme."""
        layers: dict[str, list[Site]] = {site.module: [site] for site in table.weights}
        for site in table.activations:
            if site.role == "input" and site.module in layers:
                layers[site.module].append(site)
        if self._calibration is None or not layers:
            return None
        (model, images, specs), self._calibration = self._calibration, None
        if self.config.latencies is not None:
            latency.check_complete(self.config.latencies, layers)
        bounds = {name: Bound.parse(value) for name in LIMITS if (value := getattr(self.config, name)) is not None}
        names = {name for name, _ in model.named_modules()}

        def sites(bits: Mapping[str, int]) -> dict[str, int]:
            return {site.name: width for layer, width in bits.items() for site in layers[layer]}

        def totals(bits: Mapping[str, int]) -> Totals:
            amounts = dict(table.costs(sites(bits), self.config.accounting))
            if self.config.latencies is not None:
                fixed = {name.removesuffix(".weight"): spec.bits for name, spec in specs.items()}
                amounts["latency_ms"] = latency.total(self.config.latencies, {**fixed, **bits}, names)
            return amounts

        weights = {layer: members[0] for layer, members in layers.items()}
        candidates = sorted(set(self.config.candidates))
        traces = self._traces(model, images, weights)
        costs = {
            layer: {bits: traces[layer] * perturbation(table, site, bits) for bits in candidates}
            for layer, site in weights.items()
        }
        return sites(solve(costs, candidates, totals, bounds))

    def _traces(self, model: nn.Module, images: Iterable[Tensor], weights: Mapping[str, Site]) -> dict[str, float]:
        """Layer → the mean eigenvalue of its Hessian, at least 0."""
        import torch

        traces = qplug.hessian_traces(
            model,
            [site.name for site in weights.values()],
            Slices(images, self.config.slice_size),
            probes=self.config.probes,
            tolerance=self.config.tolerance,
            seed=int(torch.randint(2**31, ())),  # the core seeds torch's generator from the recipe
        )
        return {layer: max(traces[site.name].per_parameter, 0.0) for layer, site in weights.items()}


@dataclass(frozen=True)
class Slices:
    """Batches of at most ``size`` images, for any number of passes: second derivatives need much more memory."""

    images: Iterable[Tensor]
    size: int

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.images:
            for start in range(0, len(batch), self.size):
                yield batch[start : start + self.size]


def perturbation(table: SqnrTable, site: Site, bits: int) -> float:
    """‖Q_b(W) − W‖² of a weight, computed from its SQNR."""
    power = float(table.stats(site).sample.double().square().sum())
    return float(power * 10.0 ** (-table.sqnr_db(site, bits) / 10.0))
