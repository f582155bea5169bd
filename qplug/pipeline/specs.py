"""The quantization that a recipe asks of each site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qplug.core.errors import InputError
from qplug.core.types import Granularity, QuantSpec, Site
from qplug.quantization.number_formats import NUMBER_FORMATS

if TYPE_CHECKING:
    from qplug.recipe.schema import Quantize

RECIPE = "recipe"
OVERRIDE = "recipe, override"


class Specs(dict[str, QuantSpec]):
    """The specification of each site that the recipe quantizes, by name.

    Attributes:
        fixed: sites whose bits an override sets; an allocator does not change them.
        skipped: sites that an override leaves in float → the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fixed: set[str] = set()
        self.skipped: dict[str, str] = {}


def resolve(quantize: Quantize, sites: Sequence[Site]) -> Specs:
    """The specification of each site: the recipe's, changed by the first override that matches.

    Raises:
        InputError: an override matches no site, or ``per_head`` is asked of a tensor without heads.
    """
    specs = Specs()
    unused = list(quantize.overrides)
    for site in sites:
        spec = (quantize.weights if site.kind.is_weight else quantize.activations).spec()
        override = next((o for o in quantize.overrides if o.matches(site)), None)
        unused = [o for o in unused if not o.matches(site)]
        if override is not None and override.skip:
            specs.skipped[site.name] = f"override {override.match!r}"
            continue
        if override is not None:
            spec = replace(
                spec,
                bits=override.bits or spec.bits,
                granularity=override.granularity or spec.granularity,
                symmetric=spec.symmetric if override.symmetric is None else override.symmetric,
                number_format=override.number_format or spec.number_format,
            )
            low, high = NUMBER_FORMATS[spec.number_format].bits
            if not low <= spec.bits <= high:
                raise InputError(
                    f"number_format {spec.number_format} has {low} to {high} bits, received {spec.bits}",
                    where=f"the override {override.match!r}",
                    fix="give bits of the format in the override",
                )
            if spec.symmetric:
                spec = replace(spec, zero_point="integer")
            if override.bits:
                specs.fixed.add(site.name)
        if spec.granularity is Granularity.PER_HEAD and site.head_axis is None:
            raise InputError(
                f"per_head asked of a tensor without heads ({site.kind.value})",
                where=site.name,
                fix="ask for it by override, for query, key, value, post_softmax or softmax_input alone",
            )
        specs[site.name] = spec
    if unused:
        raise InputError(
            f"the override {unused[0].match!r} matches no site of this model",
            where="quantize.overrides",
            fix="qplug inspect MODEL lists the sites and their kinds; --set quantize.overrides=[] leaves overrides out",
        )
    return specs
