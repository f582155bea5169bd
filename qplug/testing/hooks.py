"""Each run hook of a technique on toy inputs: what it answers, and whether the answer holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.component import Technique
from qplug.core.storage.hashing import fingerprint
from qplug.core.types import Granularity, NormGroup, QuantSpec, Rewrite, Site, Smoothing
from qplug.hooks.manager import Manager
from qplug.hooks.specs import RunSpecs
from qplug.hooks.torch_state import torch_state_kept
from qplug.models.blocks import BLOCKS
from qplug.models.tracing import is_gelu, is_norm
from qplug.quantization.accounting import convention
from qplug.quantization.calibration.statistics import SiteStats
from qplug.quantization.choice import QuantizerChoice
from qplug.quantization.costs import costs, plan_of
from qplug.quantization.plan import Decision
from qplug.quantization.quantizers import UniformQuantizer
from qplug.quantization.sqnr_table import SqnrTable
from qplug.testing.quantizers import check_quantizer, check_shape
from qplug.testing.toys import calibrated_toy, toy_calibration, toy_groups, toy_images, toy_vit
from qplug.training.learners import Learner
from qplug.training.reconstruction.blocks import block_contains, find_blocks
from qplug.training.reconstruction.config import Block, Reconstruction

TOLERANCE = 1e-4
"""How far a step that preserves the function may move it, as a share of the output's norm."""

PER_TENSOR, PER_CHANNEL, PER_HEAD = Granularity.PER_TENSOR, Granularity.PER_CHANNEL, Granularity.PER_HEAD


class _Hooks:
    """The technique alone in a manager, called as the pipeline calls it; it may not change settings of torch."""

    def __init__(self, technique: Technique) -> None:
        self._who = technique.name()
        self._manager = Manager(RunSpecs)
        self._manager.register(technique)

    def __getattr__(self, hook: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            try:
                with torch_state_kept() as changed:
                    result = getattr(self._manager.hook, hook)(**arguments)
            finally:
                assert not changed, f"{self._who}: {hook} changes {', '.join(changed)}, for everyone behind it"
            return result

        return call


def _hooks(technique: Technique) -> _Hooks:
    """The hooks of the technique, which has seen the calibration images where it asks for them."""
    hooks = _Hooks(technique)
    torch.manual_seed(0)
    specs = {site.name: _specs(site)[-1] for site, _ in toy_calibration()}
    hooks.qplug_calibrate(model=copy.deepcopy(calibrated_toy()[0]), images=[toy_images()], specs=specs)
    return hooks


def _specs(site: Site) -> list[QuantSpec]:
    specs = [QuantSpec(4), QuantSpec(4, symmetric=False), QuantSpec(8)]
    if site.kind.is_weight:
        specs.append(QuantSpec(4, PER_CHANNEL))
    else:
        specs.append(QuantSpec(4, symmetric=False, zero_point="float"))
        if site.head_axis is not None:
            specs.append(QuantSpec(4, PER_HEAD))
    return specs


def smoothings(technique: Technique) -> Iterator[tuple[NormGroup, SiteStats, Smoothing]]:
    """What the technique moves, for every norm of the toy that only linears read."""
    hook = _hooks(technique)
    for group, stats in toy_groups():
        with _Untouched(f"{technique.name()}: qplug_smooth", (*group.weights, *_tensors(stats))):
            results = hook.qplug_smooth(group=group, stats=stats)
        yield from ((group, stats, result) for result in results)


def choices(
    technique: Technique, *, one_of_a_kind: bool = False
) -> Iterator[tuple[Site, QuantSpec, SiteStats, QuantizerChoice]]:
    """The quantizers that the technique makes at a few specifications.

    For every site of the toy; if ``one_of_a_kind``, for one of those that have kind, role, shape and axes in common.
    """
    hook = _hooks(technique)
    sites = dict(toy_calibration())
    if one_of_a_kind:
        kinds = {(site.kind, site.role, site.shape, site.channel_axis, site.head_axis): site for site in sites}
        sites = {site: sites[site] for site in kinds.values()}
    for site, stats in sites.items():
        for spec in _specs(site):
            with _Untouched(f"{technique.name()}: qplug_make_quantizer", _tensors(stats)):
                choice = hook.qplug_make_quantizer(site=site, spec=spec, stats=stats)
            if choice is not None:
                yield site, spec, stats, choice


def rewrites(technique: Technique) -> Iterator[tuple[str, nn.Module, Rewrite]]:
    """What the technique replaces in the toy model, each with the model that it was offered in."""
    hook = _hooks(technique)
    model = toy_vit()
    for name, module in list(model.named_modules())[1:]:
        kind = "norm" if is_norm(module) else "activation" if is_gelu(module) else "module"
        with _Untouched(f"{technique.name()}: qplug_rewrite_{kind}", tuple(model.state_dict().values())):
            rewrite = getattr(hook, f"qplug_rewrite_{kind}")(name=name, module=module)
        if rewrite is not None:
            yield name, model, rewrite


def allocation(technique: Technique) -> Mapping[str, int]:
    """The bits that the technique gives to the sites of the toy, whose SQNR is that of min-max ranges."""
    known = dict(toy_calibration())
    model, found, _ = calibrated_toy()

    def measure(site: Site, bits: int) -> float:
        stats = known[site]
        return stats.sqnr_db(UniformQuantizer.from_range(stats.min, stats.max, QuantSpec(bits))(stats.sample))

    def count(bits: Mapping[str, int], accounting: str) -> dict[str, float]:
        plan = plan_of(found, lambda site: bits.get(site.name, 8))
        return costs(model, plan, convention(accounting))

    table = SqnrTable(list(known), {site.name: QuantSpec(8) for site in known}, measure, known.__getitem__, count)
    return _hooks(technique).qplug_allocate_bits(table=table) or {}


def reconstructions(technique: Technique) -> Iterator[tuple[Block, Reconstruction]]:
    """What the technique would learn of the toy's blocks, from quantizers of its own or else min-max ones."""
    model, _, _ = calibrated_toy()
    known = {site: stats for site, stats in toy_calibration() if site.macs}
    decisions, hook = [], _hooks(technique)
    for site, stats in known.items():
        spec = QuantSpec(4, Granularity.PER_CHANNEL if site.kind.is_weight else Granularity.PER_TENSOR)
        choice = hook.qplug_make_quantizer(site=site, spec=spec, stats=stats)
        quantizer = choice.quantizer if choice else UniformQuantizer.from_range(*stats.range(spec.granularity), spec)
        decisions.append(Decision(site, spec, quantizer, "", "", ""))
    for name in find_blocks(model, dict.fromkeys(site.module for site in known), toy_images(1), BLOCKS):
        inside = [decision for decision in decisions if block_contains(name, decision.site.module)]
        weights = {d.site.name: known[d.site].sample for d in inside if d.site.kind.is_weight}
        block = Block(name, inside, weights)
        answer = hook.qplug_reconstruct(block=block)
        if answer is not None:
            yield block, answer


def answers(technique: Technique) -> list[Any]:
    """Everything that the technique says of the toys, as values that can be compared."""
    said: list[Any] = [dict(allocation(technique))]
    said += [(g.norm, s.shift.tolist(), s.scale.tolist(), s.reason) for g, _, s in smoothings(technique)]
    asked = choices(technique, one_of_a_kind=True)
    said += [(s.name, spec, c.quantizer.to_dict(), c.reason) for s, spec, _, c in asked]
    for name, _, rewrite in rewrites(technique):
        state = {key: value.tolist() for key, value in rewrite.module.state_dict().items()}
        said.append((name, type(rewrite.module).__name__, state, rewrite.preserves, rewrite.reason))
    for block, reconstruction in reconstructions(technique):
        learners = {site: _hardened(learner) for site, learner in reconstruction.learners.items()}
        said.append((block.name, learners, repr({**vars(reconstruction), "learners": None})))
    return said


def check_results(technique: Technique) -> None:
    """Assert that everything that the technique says of the toys can be used."""
    name = technique.name()
    _check_allocation(name, allocation(technique))
    for group, stats, smoothing in smoothings(technique):
        _check_smoothing(f"{name} at {group.norm}", group, stats, smoothing)
    for site, spec, stats, choice in choices(technique):
        where = f"{name} at {site.name}, {spec}"
        assert isinstance(choice, QuantizerChoice), (
            f"{where}: expected a qplug.QuantizerChoice, received {type(choice).__name__}"
        )
        assert choice.quantizer.bits == spec.bits, f"{where}: the quantizer has {choice.quantizer.bits} bits"
        check_shape(choice.quantizer, stats.sample, where)
        check_quantizer(choice.quantizer, stats.sample)
    for path, model, rewrite in rewrites(technique):
        assert isinstance(rewrite, Rewrite), (
            f"{name} at {path}: expected a qplug.Rewrite, received {type(rewrite).__name__}"
        )
        if rewrite.preserves:
            changed = copy.deepcopy(model)
            changed.set_submodule(path, rewrite.module.eval())
            images = toy_images()
            with torch.no_grad():
                error = _relative(changed(images), model(images))
            assert error <= TOLERANCE, (
                f"{name} at {path}: preserves=True, and the output moves by {error:.1e} of its norm"
            )
    for block, answer in reconstructions(technique):
        _check_reconstruction(f"{name} at {block.name}", block, answer)


def _check_reconstruction(where: str, block: Block, answer: Reconstruction) -> None:
    known = {decision.site.name: decision for decision in block.decisions}
    for site, learner in answer.learners.items():
        assert site in known, f"{where}: '{site}' is no site of the block"
        assert isinstance(learner, Learner), f"{where}, {site}: expected a qplug.Learner"
        assert learner.bits == known[site].quantizer.bits, f"{where}, {site}: the learner has {learner.bits} bits"
        learned = learner.learned()
        assert any(learned.values()), (
            f"{where}, {site}: the learner has nothing to learn: learned() gives no parameter; "
            "give it one, or leave the site out of the learners"
        )
        missing = set(learned) - set(answer.rates)
        assert not missing, f"{where}, {site}: no rate for {missing}"
        quantizer, values = learner.harden()
        if site in block.weights:
            assert values is not None, f"{where}, {site}: the learner of a weight must give its values"
            assert values.shape == block.weights[site].shape, f"{where}, {site}: values of shape {tuple(values.shape)}"
            same = torch.equal(quantizer.infer(values), values)
            assert same, f"{where}, {site}: the hard quantizer changes the values that come with it"


def _hardened(learner: Learner) -> object:
    quantizer, values = learner.harden()
    return quantizer.to_dict(), None if values is None else values.tolist()


def check_untouched(model: nn.Module) -> None:
    """Assert that a toy model has its own weights, and no hook and no gradient that a run left behind."""
    for path, module in model.named_modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
            assert not getattr(module, kind), f"the run left {kind[1:].replace('_', ' ')} on '{path}'"
    for path, parameter in model.named_parameters():
        assert parameter.grad is None, f"the run left a gradient on '{path}'"
    assert fingerprint(model.state_dict()) == fingerprint(toy_vit().state_dict()), (
        "the run changed the float model's weights"
    )


def _check_allocation(name: str, bits: Mapping[str, int]) -> None:
    known = {site.name for site, _ in toy_calibration()}
    assert known.issuperset(bits), f"{name}: gives bits to sites that the table does not list: {set(bits) - known}"
    wrong = {site: width for site, width in bits.items() if not (isinstance(width, int) and 2 <= width <= 16)}
    assert not wrong, f"{name}: bits must be whole numbers from 2 to 16: {wrong}"


def _check_smoothing(where: str, group: NormGroup, stats: SiteStats, smoothing: Smoothing) -> None:
    assert isinstance(smoothing, Smoothing), f"{where}: expected a qplug.Smoothing, received {type(smoothing).__name__}"
    shape = stats.channel_max.shape
    for part, values in (("shift", smoothing.shift), ("scale", smoothing.scale)):
        assert values.shape == shape, (
            f"{where}: {part} has shape {tuple(values.shape)}, the channels are {tuple(shape)}"
        )
        assert bool(values.isfinite().all()), f"{where}: {part} is not finite"
    assert bool((smoothing.scale > 0).all()), f"{where}: scale is not positive"
    moved = (stats.sample - smoothing.shift) / smoothing.scale
    for linear, weight in zip(group.linears, group.weights, strict=True):
        error = _relative(moved @ (weight * smoothing.scale).T + weight @ smoothing.shift, stats.sample @ weight.T)
        assert error <= TOLERANCE, f"{where}: the output of {linear} moves by {error:.1e} of its norm"


def _relative(changed: Tensor, original: Tensor) -> float:
    return float((changed - original).norm() / original.norm().clamp_min(1e-12))


def _tensors(stats: SiteStats) -> tuple[Tensor, ...]:
    values = [*vars(stats).values(), *(vars(stats.product).values() if stats.product is not None else ())]
    return tuple(value for value in values if isinstance(value, Tensor))


class _Untouched:
    """Asserts that what a hook was given is as it was before."""

    def __init__(self, who: str, tensors: tuple[Tensor, ...]) -> None:
        self.who, self.tensors = who, tensors
        self.before = [tensor.clone() for tensor in tensors]

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        same = all(torch.equal(now, before) for now, before in zip(self.tensors, self.before, strict=True))
        if not same:
            with torch.no_grad():  # the toys are shared: one technique's fault must not reach another's tests
                for now, before in zip(self.tensors, self.before, strict=True):
                    now.copy_(before)
        assert same, f"{self.who} writes to a tensor that it was given"
