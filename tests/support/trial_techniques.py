"""Techniques for the tests of the contract suite: one that is right for each hook, and ways to be wrong."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field

import qplug


class Smooth(qplug.Technique):
    """Centres every channel and brings it to one magnitude."""

    class Config(qplug.Config):
        use: Literal["trial.smooth"] = "trial.smooth"
        power: float = Field(0.5, ge=0, le=1, description="share of the range that moves into the weights, no unit")

    @qplug.hookimpl
    def qplug_smooth(self, group, stats):
        return qplug.Smoothing(stats.channel_mean, stats.channel_absmax.clamp_min(1e-3) ** self.config.power, "centred")


class Rewrites(qplug.Technique):
    """Bounds every activation, and replaces norms and other modules by ones that compute the same."""

    class Config(qplug.Config):
        use: Literal["trial.rewrites"] = "trial.rewrites"

    @qplug.hookimpl
    def qplug_rewrite_norm(self, name, module):
        from torch import nn

        same = nn.LayerNorm(module.normalized_shape, eps=module.eps)
        same.load_state_dict(module.state_dict())
        return qplug.Rewrite(same, preserves=True, reason="a copy")

    @qplug.hookimpl
    def qplug_rewrite_activation(self, name, module):
        from torch import nn

        return qplug.Rewrite(nn.ReLU6(), preserves=False, reason="bounded to [0, 6]")

    @qplug.hookimpl
    def qplug_rewrite_module(self, name, module):
        from torch import nn

        if name == "head":
            same = nn.Linear(module.in_features, module.out_features)
            same.load_state_dict(module.state_dict())
            return qplug.Rewrite(same, preserves=True)
        return None


class Bits(qplug.Technique):
    """Gives 8 bits to what suffers most at 4."""

    class Config(qplug.Config):
        use: Literal["trial.bits"] = "trial.bits"

    @qplug.hookimpl
    def qplug_allocate_bits(self, table):
        return {site.name: 8 for site in table.sites if table.sqnr_db(site, 4) < 15.0}


class Loose(Smooth):
    """Its parameter is not described and its configuration takes anything."""

    class Config(qplug.Config, extra="ignore"):
        use: Literal["trial.loose"] = "trial.loose"
        power: float = 0.5


class Thawed(Smooth):
    """Its configuration can be changed."""

    class Config(qplug.Config, frozen=False):
        use: Literal["trial.thawed"] = "trial.thawed"
        power: float = Field(0.5, description="no unit")


class OutOfBounds(Smooth):
    """Its default is none that it would accept."""

    class Config(qplug.Config):
        use: Literal["trial.out_of_bounds"] = "trial.out_of_bounds"
        power: float = Field(2.0, le=1, description="no unit")


class Writes(qplug.Technique):
    """Writes to the statistics."""

    class Config(qplug.Config):
        use: Literal["trial.writes"] = "trial.writes"

    @qplug.hookimpl
    def qplug_smooth(self, group, stats):
        stats.channel_max = stats.channel_max.clone()
        group.weights[0].add_(0.0).mul_(1.0 + 1e-6)


class Counts(qplug.Technique):
    """Decides by how often it was called."""

    calls = itertools.count(2)

    class Config(qplug.Config):
        use: Literal["trial.counts"] = "trial.counts"

    @qplug.hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        return qplug.QuantizerChoice(qplug.UniformQuantizer.from_range(stats.min, stats.max * next(self.calls), spec))


class Negative(qplug.Technique):
    """Divides by a scale that is not positive."""

    class Config(qplug.Config):
        use: Literal["trial.negative"] = "trial.negative"

    @qplug.hookimpl
    def qplug_smooth(self, group, stats):
        return qplug.Smoothing(stats.channel_mean, stats.channel_mean * 0.0)


class BreaksPromise(qplug.Technique):
    """Says that a replaced norm computes the same."""

    class Config(qplug.Config):
        use: Literal["trial.breaks_promise"] = "trial.breaks_promise"

    @qplug.hookimpl
    def qplug_rewrite_norm(self, name, module):
        from torch import nn

        return qplug.Rewrite(nn.Identity(), preserves=True)


class Forgets(qplug.Technique):
    """Its quantizers do not survive a run folder."""

    class Config(qplug.Config):
        use: Literal["trial.forgets"] = "trial.forgets"

    @qplug.hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        class Coarse(qplug.UniformQuantizer):
            def to_dict(self):
                return super().to_dict() | {"scale": round(self.scale.item(), 1)}

        return qplug.QuantizerChoice(Coarse.from_range(stats.min, stats.max, spec))


class OtherBits(qplug.Technique):
    """Takes more bits than the recipe gives."""

    class Config(qplug.Config):
        use: Literal["trial.other_bits"] = "trial.other_bits"

    @qplug.hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        return qplug.QuantizerChoice(
            qplug.UniformQuantizer.from_range(stats.min, stats.max, qplug.QuantSpec(spec.bits + 1))
        )


class ManyBits(qplug.Technique):
    """Gives bits that no integer has."""

    class Config(qplug.Config):
        use: Literal["trial.many_bits"] = "trial.many_bits"

    @qplug.hookimpl
    def qplug_allocate_bits(self, table):
        return {table.sites[0].name: 32}


class Raises(qplug.Technique):
    """Fails while it runs."""

    class Config(qplug.Config):
        use: Literal["trial.raises"] = "trial.raises"

    @qplug.hookimpl
    def qplug_smooth(self, group, stats):
        raise ZeroDivisionError("nothing to divide by")


class WrongShape(qplug.Technique):
    """Its scales are as many as no site has channels."""

    class Config(qplug.Config):
        use: Literal["trial.wrong_shape"] = "trial.wrong_shape"

    @qplug.hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        import torch

        return qplug.QuantizerChoice(qplug.UniformQuantizer(torch.ones(7), None, spec.bits, signed=True))


class Grows(qplug.Technique):
    """Its scales make one tensor into seven."""

    class Config(qplug.Config):
        use: Literal["trial.grows"] = "trial.grows"

    @qplug.hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        import torch

        scale = torch.ones((7,) + (1,) * stats.sample.dim())
        return qplug.QuantizerChoice(qplug.UniformQuantizer(scale, None, spec.bits, signed=True))


class Rude(qplug.Technique):
    """Computes in float64 and leaves it at that."""

    class Config(qplug.Config):
        use: Literal["trial.rude"] = "trial.rude"

    @qplug.hookimpl
    def qplug_smooth(self, group, stats):
        import torch

        torch.set_default_dtype(torch.float64)


class LearnsNothing(qplug.Technique):
    """Its learner has no parameter."""

    class Config(qplug.Config):
        use: Literal["trial.learns_nothing"] = "trial.learns_nothing"

    @qplug.hookimpl
    def qplug_reconstruct(self, block):
        class Nothing(qplug.Learner):
            def __init__(self, quantizer):
                super().__init__()
                self.quantizer, self.bits = quantizer, quantizer.bits

            def learned(self):
                return {}

        sites = [decision for decision in block.decisions if not decision.site.kind.is_weight]
        return qplug.Reconstruction({d.site.name: Nothing(d.quantizer) for d in sites}, rates={}, iterations=1)


class NotMarked(Smooth):
    """One of its hooks is not marked."""

    class Config(qplug.Config):
        use: Literal["trial.not_marked"] = "trial.not_marked"

    def qplug_allocate_bits(self, table):
        return {}


class Misspelt(Smooth):
    """One of its hooks is misspelt and not marked."""

    class Config(qplug.Config):
        use: Literal["trial.misspelt"] = "trial.misspelt"

    def qplug_alocate_bits(self, table):
        return {}


class Defaults(qplug.Technique):
    """Gives a parameter a default value."""

    class Config(qplug.Config):
        use: Literal["trial.defaults"] = "trial.defaults"

    @qplug.hookimpl
    def qplug_smooth(self, group, stats=None):
        return None
