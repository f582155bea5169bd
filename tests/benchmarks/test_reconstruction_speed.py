"""What an iteration of a reconstruction costs, in multiples of the block's own float forward and backward."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from plugin_toys import make, real_images, real_model
from qplug_plugins.brecq import Brecq
from torch import Tensor, nn
from workbench import least_seconds

from qplug import Block, Granularity, QuantSpec, UniformQuantizer
from qplug.core.memory import keep_freed_memory
from qplug.hooks.registry import backend_of, installed
from qplug.models.adapters import make_explicit
from qplug.quantization.calibration.calibrator import Calibration, watched_sites
from qplug.quantization.plan import Decision, Plan
from qplug.quantization.sites import find_sites
from qplug.training.reconstruction.blocks import lower_block
from qplug.training.reconstruction.capture import Calls, capture
from qplug.training.reconstruction.iteration import Iteration
from qplug.training.reconstruction.loop import _optimizer
from qplug.training.reconstruction.losses import MeanSquared
from qplug.training.reconstruction.reconstructor import _with_learners

pytestmark = pytest.mark.slow

NAME, ITERATIONS = "blocks.5", 3


@pytest.fixture(scope="module", autouse=True)
def _as_the_command_line_does() -> None:
    keep_freed_memory()


def decided(model: nn.Module, images: Tensor) -> Plan:
    """Min-max grids for a block, weights at 4 bits and activations at 8."""
    sites = [s for s in watched_sites(find_sites(model, images[:1]).sites, False, False) if s.module.startswith(NAME)]
    statistics = Calibration(model, sites, len(images), 0)
    statistics.collect([images])
    plan = Plan()
    for site in sites:
        if site.kind.is_weight:
            spec, weight = QuantSpec(4, Granularity.PER_CHANNEL, False), model.get_submodule(site.module).weight
            low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        else:
            stats = statistics.stats(site)
            spec, low, high = QuantSpec(8, symmetric=False), stats.min, stats.max
        plan.decisions[site.name] = Decision(site, spec, UniformQuantizer.from_range(low, high, spec), "", "", "")
    return plan


@pytest.mark.parametrize("batch", [12, 32])
@pytest.mark.parametrize(("compiled", "most"), [(False, 2.0), (True, 1.3)], ids=["eager", "compiled"])
def test_an_iteration_costs_little_more_than_the_blocks_own_forward_and_backward(
    benchmark, shared: Path, compiled: bool, most: float, batch: int
):
    """BRECQ on a block of DeiT-Ti: weights softly rounded, eight activations quantized with learned steps."""
    source = real_model(shared, "deit_tiny_patch16_224")
    images = real_images(shared, "calib", 64, source.preprocessing.transform())
    model, fused = source.module, copy.deepcopy(source.module)
    make_explicit(model, installed().adapters, images[:1])
    plan, backend = decided(model, images), backend_of("brevitas", installed())
    calls: Calls = capture(model, NAME, images.split(32))
    weights = {d.site.name: model.get_submodule(d.site.module).weight for d in plan if d.site.kind.is_weight}

    settings = make(Brecq, batch_size=batch, compile=compiled).qplug_reconstruct(block=Block(NAME, list(plan), weights))
    block = lower_block(backend, model, NAME, _with_learners(plan, list(plan), settings)).requires_grad_(False)
    optimizer, _ = _optimizer(settings, None)
    step = Iteration(block, settings, calls, calls.inputs, MeanSquared(), optimizer, batch)
    step.beta.fill_(2.0)

    def ours() -> None:
        for _ in range(ITERATIONS):
            step.images.copy_(torch.randperm(len(images))[:batch])
            step(True)

    def floats(whole: nn.Module) -> None:
        block = whole.get_submodule(NAME).requires_grad_(True)
        for _ in range(ITERATIONS):
            picked = torch.randperm(len(images))[:batch]
            with torch.enable_grad():
                error = (block(calls.inputs[picked]) - calls.outputs[picked]).square().sum(-1).mean()
            block.zero_grad()
            error.backward()

    works = {"ours": ours, "explicit": lambda: floats(model), "fused": lambda: floats(fused)}
    seconds = benchmark.pedantic(lambda: least_seconds(works, rounds=5), rounds=1, iterations=1)
    multiples = {name: seconds["ours"] / seconds[name] for name in ("explicit", "fused")}
    benchmark.extra_info |= multiples
    how = "compiled" if compiled else "eager"
    print(
        f"\n{how} iterations at batch {batch}: {multiples['explicit']:.2f} float ones with attention explicit, "
        f"{multiples['fused']:.2f} with attention fused"
    )
    assert multiples["explicit"] <= most
