"""Hessian traces of token-mixing and of channel-mixing weights (Q-MLP, Fig. 3)."""

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
class MixerTrace:
    """Hessian trace of the mixer of one kind in one block.

    Attributes:
        block: path of the block; an operation outside of blocks counts as a block.
        position: position of the block's output, as a share of the depth.
        role: ``token`` or ``channel``, the axis that is mixed.
        operations: paths of the linears and convolutions of the mixer.
        trace: trace of the Hessian of the loss by all their weights and biases, mean over images, in nats per weight².
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
    """(block, role) → the paths of its operations, in model order.

    An operation mixes tokens if its path matches a pattern of ``tokens``, and channels if it matches one of
    ``channels``. If neither matches, a depthwise convolution mixes tokens and a 1×1 convolution mixes channels. Other
    operations, such as patch embeddings and heads, have no role. The attention of a transformer, projections included,
    counts as token mixing.

    Raises:
        InputError: no operation mixes tokens, or none mixes channels.
    """
    groups: dict[tuple[str, Role], list[str]] = {}
    for name in dict.fromkeys(site.module for site in sites if site.kind.is_weight):
        role = _role(name, model.get_submodule(name), tokens, channels)
        if role is not None:
            groups.setdefault((depth.owners[name], role), []).append(name)
    for required, option, patterns in (("token", "--token-mixing", tokens), ("channel", "--channel-mixing", channels)):
        if not any(role == required for _, role in groups):
            raise InputError(
                f"expected linears or convolutions that mix {required}s, found none: no path matches "
                f"{', '.join(patterns)}",
                where="--hessian",
                fix=f"name them with {option} PATTERN; qplug inspect MODEL lists the operations",
            )
    return {key: tuple(names) for key, names in groups.items()}


def mixing_traces(
    model: nn.Module,
    groups: dict[tuple[str, Role], tuple[str, ...]],
    depth: Depth,
    batches: Iterable[Tensor],
    *,
    probes: int,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> list[MixerTrace]:
    """The Hessian trace of each of the ``groups`` of ``mixers``, in their order.

    Hutchinson's estimate with Rademacher vectors. It stops when one more vector moves no group's running mean by more
    than 1e-3 of that mean (see ``hessian_traces``). The loss is the cross-entropy against the model's own top-1, which
    needs no labels [ours].

    Args:
        model: float model in eval mode.
        groups: (block, role) → paths of operations.
        depth: positions of the blocks.
        batches: images (B, C, H, W) float32, iterated once for each probe.
        probes: number of random vectors, at most.
        seed: seed of the vectors.
        advance: called with the number of finished probes.
    """
    parameters = {
        f"{block}/{role}": [
            f"{name}.{key}" for name in names for key, _ in model.get_submodule(name).named_parameters(recurse=False)
        ]
        for (block, role), names in groups.items()
    }
    traces = hessian_traces(model, parameters, batches, probes=probes, seed=seed, advance=advance)
    return [
        MixerTrace(block, depth.positions[block], role, names, traces[f"{block}/{role}"])
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
