"""The name of a recipe that ``--set`` changed: what was set is part of it."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 4
"""Settings in a name, at most."""
LONGEST = 24
"""Characters of a value in a name, at most."""
ELSEWHERE = ("name", "seed", "paper", "version", "model", "data.evaluation")
"""Keys, or beginnings of keys, that tables show in another place."""
LOCATIONS = ("path", "checkpoint_path", "class_map", "pretrained", "revision")
"""Last parts of keys that say where weights and images are: their content identifies them."""
PREFIXES = ("quantize.", "techniques.", "data.")


def with_settings(name: str, overrides: Sequence[str]) -> str:
    """``mptq_vit · weights.bits=8, activations.bits=8``: the name, with the ``key=value`` texts in short."""
    words: dict[str, str] = {}
    for text in overrides:
        key, _, value = (part.strip() for part in text.partition("="))
        if not _elsewhere(key):
            short = next((key.removeprefix(prefix) for prefix in PREFIXES if key.startswith(prefix)), key)
            words[short] = value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…"
    shown = [f"{key}={value}" for key, value in words.items()]
    more = [f"{len(shown) - MOST} more"] if len(shown) > MOST else []
    return f"{name} · {', '.join([*shown[:MOST], *more])}" if shown else name


def _elsewhere(key: str) -> bool:
    return key.rpartition(".")[2] in LOCATIONS or any(key == one or key.startswith(f"{one}.") for one in ELSEWHERE)
