"""Names of tensors in checkpoints of other programs, which wrap a model under prefixes such as ``backbone.``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from qplug.core.text import listed

WRAPPERS = frozenset(
    "module _orig_mod model backbone student teacher encoder head net network base_model base_encoder encoder_q "
    "ema ema_model model_ema target_encoder".split()
)
"""Names that programs give the module around a model, or the parts of it."""
PREFERRED = ("model_ema.", "ema_model.", "ema.", "teacher.")
"""Prefixes that count if the same model lies under several."""


def unwrap(wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
    """The tensors of ``state`` under the names of ``wanted``, without the prefixes of wrappers, and a note on that.

    Either all lie under one prefix, or each under a prefix of ``WRAPPERS`` that leaves no choice. The result may still
    lack tensors of ``wanted``, or have others.

    Args:
        wanted: names and shapes of the model's tensors.
        state: of a checkpoint.

    Returns:
        ``None`` if no prefix brings most of the names together.
    """
    prefixes = Counter(
        key[: -len(name)] for name in wanted for key in state if key.endswith(f".{name}") and len(key) > len(name)
    )
    whole = [prefix for prefix, count in prefixes.items() if _covers(prefix, wanted, state)]
    best = next((prefix for prefix in PREFERRED if prefix in whole), None) or (whole[0] if len(whole) == 1 else None)
    if best is None and len(whole) < 2:
        mixed = _mixed(wanted, state, prefixes)
        if mixed is not None:
            return mixed
        common = prefixes.most_common(1)
        best = common[0][0] if common and common[0][1] > len(wanted) // 2 else None
    if best is None:
        return None
    left = [key for key in state if not key.startswith(best)]
    note = f"the prefix '{best}' was removed from the checkpoint's keys"
    if left:
        note += f", and what lies beside it was left out: {listed(left)}"
    return {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}, note


def several(wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> list[str]:
    """The prefixes under which the whole model lies, if there are several."""
    one = next(iter(wanted), "")
    found = [key[: -len(one)] for key in state if key.endswith(f".{one}")]
    return [prefix for prefix in found if _covers(prefix, wanted, state)]


def _covers(prefix: str, wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> bool:
    """Whether all of ``wanted`` lie under ``prefix``, with the right shapes."""
    return all(
        prefix + name in state and tuple(state[prefix + name].shape) == shape
        for name, shape in wanted.items()
        if not name.endswith("num_batches_tracked")
    )


def _mixed(
    wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], prefixes: Counter[str]
) -> tuple[dict[str, Tensor], str] | None:
    """Tensors under several prefixes of ``WRAPPERS``, such as mmcls's ``backbone.`` and ``head.``."""
    known = ["", *(prefix for prefix in prefixes if set(prefix.rstrip(".").split(".")) <= WRAPPERS)]
    found: dict[str, str] = {}
    for name, shape in wanted.items():
        keys = [
            prefix + name for prefix in known if prefix + name in state and tuple(state[prefix + name].shape) == shape
        ]
        if len(keys) > 1:
            return None
        if keys:
            found[name] = keys[0]
        elif not name.endswith("num_batches_tracked"):
            return None
    rest = [key for key in state if key not in found.values()]
    removed = dict.fromkeys(key[: -len(name)] for name, key in found.items() if key != name)
    if any(key.startswith(tuple(removed)) or key.partition(".")[0] not in WRAPPERS for key in rest):
        return None  # tensors beside the model's own, which it does not know
    note = f"the prefixes {', '.join(map(repr, removed))} were removed from the checkpoint's keys"
    if rest:
        note += f", and other tensors were left out: {listed(rest)}"
    return {name: state[key] for name, key in found.items()}, note
