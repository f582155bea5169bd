"""The three rewrite hooks, with toy techniques."""

from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from numeric_toys import Sequence, steps, vit
from torch import nn

import qplug
from qplug import Rewrite
from qplug.core.errors import EquivalenceError
from qplug.models.equivalence import EquivalenceCheck
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs
from qplug.pipeline.stages.rewrite import rewrite, rewrite_modules


class NoCheck:
    """For rewrites that could not compute; what the guard does has tests of its own."""

    def check(self, changes):
        assert len(changes) == 1


def guard(model):
    return NoCheck()


class Base(qplug.Technique):
    class Config(qplug.Config):
        use: Literal["toy.base"] = "toy.base"


class Norms(Base):
    @qplug.hookimpl
    def qplug_rewrite_norm(self, name, module):
        if name.startswith("blocks.0"):
            return Rewrite(nn.BatchNorm1d(1), preserves=False, reason=type(module).__name__)
        return None


class Bounds(Base):
    class Config(qplug.Config):
        use: Literal["toy.bounds"] = "toy.bounds"

    @qplug.hookimpl
    def qplug_rewrite_activation(self, name, module):
        return Rewrite(nn.ReLU6(), preserves=False)


class Modules(Base):
    class Config(qplug.Config):
        use: Literal["toy.modules"] = "toy.modules"

    @qplug.hookimpl
    def qplug_rewrite_module(self, name, module):
        if name.endswith("mlp"):
            return Rewrite(nn.Sequential(module.fc1, nn.Tanh(), module.fc2).train(), preserves=True, reason="flat")
        return None


def test_norms():
    model = vit()
    changes = rewrite_modules(model, steps(Norms), guard(model))
    assert [(c.where, c.technique, c.preserves, c.reason) for c in changes] == [
        ("blocks.0.norm1", "toy.base", False, "LayerNorm"),
        ("blocks.0.norm2", "toy.base", False, "LayerNorm"),
    ]
    assert type(model.blocks[0].norm1) is nn.BatchNorm1d
    assert type(model.blocks[1].norm1).__name__ == "LayerNorm"


def test_activations():
    model = vit()
    changes = rewrite_modules(model, steps(Bounds), guard(model))
    assert [c.where for c in changes] == ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    assert type(model.blocks[1].mlp.act) is nn.ReLU6


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.bound = nn.Parameter(torch.tensor(6.0))

    def forward(self, x):
        return x.clamp(0.0, self.bound)


class Learn(Base):
    @qplug.hookimpl
    def qplug_rewrite_activation(self, name, module):
        return Rewrite(Learned(), preserves=False)


def test_what_a_technique_returns_comes_to_the_models_device():
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.ReLU())
    rewrite_modules(model, steps(Learn), NoCheck())
    assert model[1].bound.device.type == "meta"


def test_a_module_under_two_names_is_replaced_under_both():
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act)
    assert [c.where for c in rewrite_modules(model, steps(Learn), NoCheck())] == ["1"]
    assert model[1] is model[3]
    assert isinstance(model[3], Learned)


class ConvGELU(nn.Module):
    """A block, for all that its name says."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 3, 1), nn.GELU()

    def forward(self, x):
        return self.act(self.conv(x))


def test_a_block_that_is_named_after_its_activation_is_none():
    model = nn.Sequential(ConvGELU())
    assert [c.where for c in rewrite_modules(model, steps(Learn), NoCheck())] == ["0.act"]


def test_modules_and_in_eval_mode_and_children_of_what_was_replaced_are_not_asked():
    model, asked = vit(), []

    class Watch(Modules):
        @qplug.hookimpl
        def qplug_rewrite_module(self, name, module):
            asked.append(name)
            return Modules.qplug_rewrite_module(self, name, module)

    changes = rewrite_modules(model, steps(Watch), guard(model))
    assert [(c.where, c.preserves) for c in changes] == [("blocks.0.mlp", True), ("blocks.1.mlp", True)]
    assert not model.blocks[0].mlp.training
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    assert "blocks.0.mlp" in asked
    assert "blocks.0.mlp.fc1" not in asked
    assert "" not in asked


def test_any_other_module_means_neither_norms_nor_activations():
    asked = []

    class Watch(Modules):
        @qplug.hookimpl
        def qplug_rewrite_module(self, name, module):
            asked.append(name)

    rewrite_modules(model := vit(), steps(Watch), guard(model))
    assert "blocks.0.attn.qkv" in asked
    assert not [name for name in asked if "norm1" in name or name.endswith("act")]


def test_norms_come_first_then_activations_then_modules_and_the_first_step_wins():
    order = []

    def noting(technique, hook):
        def answer(self, name, module):
            order.append((hook, name))

        return type("Noting", (technique,), {hook: qplug.hookimpl(answer)})

    hooks = ("qplug_rewrite_module", "qplug_rewrite_activation", "qplug_rewrite_norm")
    rewrite_modules(
        model := vit(),
        steps(*(noting(t, hook) for t, hook in zip((Base, Bounds, Modules), hooks, strict=True))),
        guard(model),
    )
    assert [hook for hook, _ in order] == sorted((hook for hook, _ in order), key=hooks[::-1].index)
    names = [name for hook, name in order if hook == "qplug_rewrite_norm"]
    assert names == [name for name, module in vit().named_modules() if isinstance(module, nn.LayerNorm)]

    class Second(Norms):
        class Config(qplug.Config):
            use: Literal["toy.second"] = "toy.second"

        @qplug.hookimpl
        def qplug_rewrite_norm(self, name, module):
            return Rewrite(nn.Identity(), preserves=False)

    changes = rewrite_modules(model := vit(), steps(Norms, Second), guard(model))
    assert [c.technique for c in changes] == ["toy.base"] * 2 + ["toy.second"] * 3


@pytest.mark.parametrize("module", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.LayerNorm(4)])
def test_every_kind_of_norm_is_offered(module):
    model = nn.Sequential(nn.Sequential(module))
    offered = []

    class Watch(Norms):
        @qplug.hookimpl
        def qplug_rewrite_norm(self, name, module):
            offered.append(name)

    rewrite_modules(model, steps(Watch), guard(model))
    assert offered == ["0.0"]


def test_a_promise_is_checked_whatever_another_rewrite_did():
    class Mixed(Base):
        @qplug.hookimpl
        def qplug_rewrite_activation(self, name, module):
            return Rewrite(nn.ReLU6(), preserves=name.startswith("blocks.1"))

    model = vit()
    with pytest.raises(EquivalenceError, match="moved by"):
        rewrite_modules(model, steps(Mixed), EquivalenceCheck(model, torch.randn(2, 3, 32, 32)))


def test_products_that_cannot_be_read_are_a_warning_and_part_of_the_model():
    def call(model, x):
        return model.a(x) @ model.a(x).mT * float(x.max())

    float_model = SimpleNamespace(
        module=Sequence(call, a=nn.Linear(8, 8)), preprocessing=SimpleNamespace(example=lambda: torch.randn(1, 6, 8))
    )
    with RunContext.of() as ctx:
        model = rewrite(ctx, Inputs(float_model), ask=False)
    reason = "it depends on values of a tensor (float)"
    assert model.unread == {"(model)": reason}
    assert ctx.warnings == [f"products of (model) stay in float: {reason}"]
