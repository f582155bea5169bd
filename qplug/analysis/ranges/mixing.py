"""Token-mixing against channel-mixing weights: whose loss is more sharply curved (Q-MLP, Fig. 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from qplug.analysis.ranges.depth import Depth
from qplug.core.errors import InputError
from qplug.core.types import Site, matches
from qplug.quantization.calibration.hessian import Trace, hessian_traces

Role = Literal["token", "channel"]
TOKENS = ("*.mlp_tokens.*", "*.linear_tokens", "*.linear_tokens.*", "*.attn.*")
CHANNELS = ("*.mlp_channels.*", "*.mlp.*")


@dataclass(frozen=True)
class Mixing:
    """The mixer of one kind in one block.

    Attributes:
        block: its path; an operation outside of blocks is one by itself.
        position: of the block's output, as a share of the depth.
        role: what it mixes.
        operations: paths of its linears and convolutions.
        trace: of the Hessian of the loss by all their weights and biases, mean over images, in nats per weight².
    """

    block: str
    position: float
    role: Role
    operations: tuple[str, ...]
    trace: Trace


def mixers(
    model: nn.Module,
    sites: Sequence[Site],
    depth: Depth,
    tokens: Sequence[str] = TOKENS,
    channels: Sequence[str] = CHANNELS,
) -> dict[tuple[str, Role], tuple[str, ...]]:
    """(block, role) → the operations that have it, in model order.

    An operation whose path matches a pattern of ``tokens`` mixes tokens, one of ``channels`` channels; where neither
    matches, a depthwise convolution mixes tokens and a 1×1 convolution channels. All else, such as patch embeddings and
    heads, has no role. A transformer's attention, projections included, is what it has in the place of a token mixer.

    Raises:
        InputError: no operation mixes tokens, or none mixes channels.
    """
    found: dict[tuple[str, Role], list[str]] = {}
    for name in dict.fromkeys(site.module for site in sites if site.kind.is_weight):
        role = _role(name, model.get_submodule(name), tokens, channels)
        if role is not None:
            found.setdefault((depth.owners[name], role), []).append(name)
    for wanted, option, patterns in (("token", "--token-mixing", tokens), ("channel", "--channel-mixing", channels)):
        if not any(role == wanted for _, role in found):
            raise InputError(
                f"no linear and no convolution of this model is known to mix {wanted}s: none matches "
                f"{', '.join(patterns)}",
                where="--hessian",
                fix=f"name them with {option} PATTERN; qplug inspect MODEL lists the operations",
            )
    return {key: tuple(names) for key, names in found.items()}


def mixing_traces(
    model: nn.Module,
    groups: dict[tuple[str, Role], tuple[str, ...]],
    depth: Depth,
    batches: Iterable[Tensor],
    *,
    probes: int,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> list[Mixing]:
    """The Hessian trace of each of ``groups``, which ``mixers`` found, in their order.

    Hutchinson's estimate with Rademacher vectors, until a further one moves no group's running mean by more than 1e-3
    of it (see ``hessian_traces``); the loss is the cross-entropy against the model's own top-1, which needs no labels
    [ours].

    Args:
        model: the float model, in eval mode.
        groups: (block, role) → paths of operations.
        depth: where the blocks stand.
        batches: images (B, C, H, W) float32, iterated anew for every probe.
        probes: at most.
        seed: of the vectors.
        advance: is told how many probes are done.
    """
    parameters = {
        f"{block}/{role}": [
            f"{name}.{key}" for name in names for key, _ in model.get_submodule(name).named_parameters(recurse=False)
        ]
        for (block, role), names in groups.items()
    }
    traces = hessian_traces(model, parameters, batches, probes=probes, seed=seed, advance=advance)
    return [
        Mixing(block, depth.positions[block], role, names, traces[f"{block}/{role}"])
        for (block, role), names in groups.items()
    ]


def _role(name: str, module: nn.Module, tokens: Sequence[str], channels: Sequence[str]) -> Role | None:
    if matches(name, tokens):
        return "token"
    if matches(name, channels):
        return "channel"
    if isinstance(module, nn.Conv2d):
        if set(module.kernel_size) == {1} and module.groups == 1:
            return "channel"
        if module.groups == module.in_channels == module.out_channels > 1 and set(module.kernel_size) != {1}:
            return "token"
    return None
