"""Reconstruct blocks: techniques choose what is learned, and the result cache keeps each learned block."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

from qplug.core.errors import PluginError
from qplug.core.storage.hashing import fingerprint, images_digest
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs, RewrittenModel
from qplug.quantization.plan import Plan
from qplug.training.learners import Learner
from qplug.training.reconstruction.config import Block, Reconstruction
from qplug.training.reconstruction.losses import LOSSES, OutputLoss
from qplug.training.reconstruction.reconstructor import Reconstructor

HOOK = "qplug_reconstruct"
Key = Callable[[], dict[str, Any]]
"""Everything that a learned block depends on; computed only with a cache."""


def reconstruct(ctx: RunContext, inputs: Inputs, model: RewrittenModel, plan: Plan, loss: str) -> None:
    """Learn every block that a technique takes; the model's weights and the plan become the learned ones, in place.

    A run that was stopped goes on at the first block that the cache lacks.

    Raises:
        PluginError: a technique answered what cannot be learned, or raised.
    """
    if not ctx.caller.implements(HOOK):
        return
    images, task = inputs.images, inputs.float_model.task
    blocks = Reconstructor(ctx.backend, model.module, plan, list(images), loss, ctx.seed, ctx.caller.blocks, task)
    names = blocks.blocks()
    by = ctx.results.identities([*ctx.caller.techniques, ctx.backend])

    def key(name: str) -> dict[str, Any]:
        return {
            "blocks": names,
            "model": [repr(model.module), fingerprint(model.module.state_dict())],
            "plan": plan.to_dict(),
            "images": images_digest(images.examples, labels=False),
            "preprocessing": repr(images.preprocessing),
            "loss": loss,
            "by": by,
            "block": name,
        }

    with ctx.stage("reconstruction", len(names)) as advance:
        for done, name in enumerate(names, start=1):
            _reconstruct_block(ctx, blocks, name, functools.partial(key, name) if by is not None else None)
            gc.collect()  # lowered modules lie in reference cycles: without this those of many blocks are held
            advance(done)
    ctx.warnings += blocks.warnings()


def _reconstruct_block(ctx: RunContext, blocks: Reconstructor, name: str, key: Key | None) -> None:
    block = blocks.block(name)
    answer = ctx.caller.first(HOOK, block=block)
    if answer is None:
        return
    technique, settings = answer
    with ctx.caller.blame(technique, HOOK, name):
        check_answer(settings, block, ctx.caller.where(technique, HOOK, name))
    slot = ctx.results.slot("reconstruction", key) if key is not None else None
    if slot is not None and slot.tensors is not None:
        blocks.restore(slot.tensors, slot.about, ctx.results.quantizer)
    else:
        blocks.learn(name, technique.name(), settings, functools.partial(ctx.caller.blame, technique, HOOK))
        if slot is not None and all(ctx.results.round_trips(d.quantizer) for d in blocks.decisions(name)):
            weights, about = blocks.state(name)
            slot.keep(weights, about=about)
    blocks.finish(name)


def check_answer(settings: object, block: Block, where: str) -> None:
    """Raises ``PluginError`` for an answer that cannot be learned."""
    if not isinstance(settings, Reconstruction):
        raise PluginError(f"expected a Reconstruction, got {type(settings).__name__}", where=where)
    if not isinstance(settings.loss, OutputLoss) and settings.loss not in LOSSES:
        what = f"one of {', '.join(LOSSES)} or an OutputLoss was expected as loss, got {settings.loss!r}"
        raise PluginError(what, where=where)
    known = {d.site.name: d for d in block.decisions}
    for name, learner in settings.learners.items():
        if name not in known or not isinstance(learner, Learner):
            what = f"'{name}' with a {type(learner).__name__}"
            raise PluginError(f"a Learner for a site of the block was expected, got {what}", where=where)
        if learner.bits != known[name].quantizer.bits:
            what = f"{name} has {known[name].quantizer.bits} bits, its learner {learner.bits}"
            raise PluginError(what, where=where)
        learned = learner.learned()
        if not any(learned.values()):
            what = f"the learner of {name} has nothing to learn: learned() gives no parameter"
            raise PluginError(what, where=where, fix="give it a parameter, or leave the site out of the learners")
        missing = set(learned) - set(settings.rates)
        if missing:
            raise PluginError(f"no rate for what is learned as {', '.join(sorted(missing))}", where=where)
