"""Bits per module: the least sum of nuclear norm times quantization error within an average bit width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

import qplug
from qplug import Site, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import SqnrTable


class Pareto(Technique):
    """One bit width for all operations of an attention or MLP: the widths of least Omega within the given average.

    Omega = Σ over modules Σ over their tensors ‖Y‖_*·‖Ŷ − Y‖², with the nuclear norm and the quantization error of a
    module's tensors Y. The configuration of least Omega within the averages is a point of the Pareto frontier of
    (size, Omega). An integer programme finds it exactly, first for weights and then for activations. Liu et al.'s text
    is not available, so these are [ours]: Y is each quantized tensor, while they weight a module's output features
    (attention maps for MSA). The norm of an activation is that of its sampled rows; in attention, it is the mean over
    sampled images, summed over heads. An operation outside of attention and MLP is a module by itself. The average
    counts elements.
    """

    paper = "Liu et al. 2021, section 3.3, as described in MPTQ-ViT, section 2.4"
    allocates = ("candidates",)

    class Config(qplug.Config):
        """The targets."""

        use: Literal["liu2021.pareto"] = Field("liu2021.pareto", description="name of the technique")
        weights: float = Field(description="average bits of weights, at most", ge=2.0, le=16.0)
        activations: float = Field(description="average bits of activations, at most", ge=2.0, le=16.0)
        candidates: tuple[int, ...] = Field((4, 5, 6, 7, 8), description="bits that a module may get", min_length=1)

        @model_validator(mode="after")
        def _reachable(self) -> Pareto.Config:
            if not all(2 <= bits <= 16 for bits in self.candidates):
                raise ValueError(f"expected candidates of 2 to 16 bits, received {list(self.candidates)}")
            if min(self.weights, self.activations) < min(self.candidates):
                raise ValueError(f"an average below {min(self.candidates)}, the fewest candidates, cannot be reached")
            return self

    @hookimpl
    def qplug_allocate_bits(self, table: SqnrTable) -> Mapping[str, int]:
        """Allocate weights, then activations."""
        weights = self._choose(table.weights, table, self.config.weights)
        return weights | self._choose(table.activations, table, self.config.activations)

    def _choose(self, sites: Sequence[Site], table: SqnrTable, target: float) -> dict[str, int]:
        from qplug import Limit, choose_bits

        modules: dict[str, list[Site]] = {}
        for site in sites:
            modules.setdefault(module_of(site), []).append(site)
        sizes = {name: sum(site.numel for site in members) for name, members in modules.items()}
        costs: dict[str, dict[int, float]] = {name: dict.fromkeys(self.config.candidates, 0.0) for name in modules}
        for name, members in modules.items():
            for site in members:
                weight = nuclear_norm(table, site) * float(table.stats(site).sample.double().square().sum())
                for bits in self.config.candidates:
                    costs[name][bits] += weight * 10.0 ** (-table.sqnr_db(site, bits) / 10.0)
        limit = Limit("average bits", lambda name, bits: sizes[name] * bits, target * sum(sizes.values()))
        chosen = choose_bits(costs, [limit])
        return {site.name: chosen[name] for name, members in modules.items() for site in members}


def module_of(site: Site) -> str:
    """The parent of an operation if it is an attention or MLP; otherwise the operation itself."""
    parent, _, leaf = site.module.rpartition(".")
    is_part = parent.rpartition(".")[2] in ("attn", "mlp") or leaf.startswith(("fc", "qkv", "matmul"))
    return parent if parent and is_part else site.module


def nuclear_norm(table: SqnrTable, site: Site) -> float:
    """The sum of the singular values of a tensor's sampled rows; summed over heads and averaged over images if it has
    heads.
    """
    import torch

    sample = table.stats(site).sample.double()
    if site.head_axis is None:
        return float(torch.linalg.matrix_norm(sample.flatten(1), "nuc"))
    return float(torch.linalg.matrix_norm(sample, "nuc").sum(1).mean())
