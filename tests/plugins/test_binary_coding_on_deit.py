"""A table of squared errors of greedy, alternated and uniform codes of DeiT-Ti's weights."""

from __future__ import annotations

import pytest
import torch
from qplug_plugins.mr_biq.coding import Format
from qplug_plugins.mr_biq.fitting import fit_binary, fit_grid, in_groups
from qplug_plugins.mr_biq.rows import SortedRows

SHOWN = ("patch_embed.proj", "blocks.0.attn.qkv", "blocks.5.mlp.fc2", "blocks.11.attn.proj", "head")
KINDS = {
    "greedy": (Format(2), lambda w, bits: fit_binary(w, bits, refine=False)),
    "alternated": (Format(2), lambda w, bits: fit_binary(w, bits)),
    "uniform": (Format(2, uniform=True), lambda w, bits: fit_grid(w, bits, offset=False)),
    "alternated, offset": (Format(2, offset=True), lambda w, bits: fit_binary(w, bits, offset=True)),
    "uniform, offset": (Format(2, uniform=True, offset=True), fit_grid),
}
"""Without an offset and with one; "uniform" alternates step (and offset) by least squares, "uniform, offset" is
Mr.BiQ-Uniform."""


def errors(w, bits):
    """Kind → (rows,) squared error."""
    rows, by_kind = SortedRows(w), {}
    for kind, (form, fit) in KINDS.items():
        scales = torch.cat([part for part in fit(w, bits) if part is not None], 1)
        by_kind[kind] = rows.split(*Format(bits, form.uniform, form.offset).ordered(scales))[2]
    return by_kind


@pytest.mark.real
def test_alternated_codes_lose_least_of_their_kind(shared):
    """On every row of every layer: alternated ≤ greedy and ≤ uniform, with an offset and without."""
    from safetensors import safe_open

    lines = [f"{'Σ(ŵ − w)²/Σw², per cent':32}" + "".join(f"{kind:>20}" for kind in KINDS)]
    with safe_open(str(shared / "weights" / "deit_tiny_patch16_224.safetensors"), "pt") as weights:
        layers = [name[: -len(".weight")] for name in weights.keys() if weights.get_slice(name).get_shape()[1:]]  # noqa: SIM118
        layers = [name for name in layers if name + ".bias" in weights.keys()]  # noqa: SIM118
        for bits in (2, 3, 4):
            totals, square = dict.fromkeys(KINDS, 0.0), 0.0
            for name in layers:
                tensor = weights.get_tensor(f"{name}.weight")
                w = in_groups(tensor, len(tensor), None).double()
                by_kind, slack = errors(w, bits), 1e-12 * w.square().sum(1)
                pairs = [("alternated", other) for other in ("greedy", "uniform")]
                pairs += [("alternated, offset", other) for other in ("uniform, offset", "alternated")]
                for least, other in pairs:
                    assert (by_kind[least] <= by_kind[other] + slack).all(), (name, bits, least, other)
                shares = {kind: float(error.sum()) for kind, error in by_kind.items()}
                totals = {kind: totals[kind] + shares[kind] for kind in KINDS}
                square += float(w.square().sum())
                if name in SHOWN:
                    lines.append(row(f"{bits} bits  {name}", shares, float(w.square().sum())))
            lines.append(row(f"{bits} bits  all {len(layers)} layers", totals, square))
            assert totals["alternated"] < {2: 0.9, 3: 0.7, 4: 0.4}[bits] * totals["greedy"]
            assert totals["alternated, offset"] < 0.98 * totals["uniform, offset"]
    print("\n" + "\n".join(lines))
    assert len(layers) == 50  # 4 in each of 12 blocks, patch embedding and head


def row(name, shares, square):
    return f"{name:32}" + "".join(f"{100 * shares[kind] / square:20.3f}" for kind in KINDS)
