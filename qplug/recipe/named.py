"""The recipes that come with qplug, by name."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qplug.core.errors import InputError
from qplug.core.text import did_you_mean, short

if TYPE_CHECKING:
    from qplug.recipe.schema import Quantize

GENERAL = ("w8a8", "w4a8", "w4a4", "mixed", "deploy_int8")
"""Names for a first run, in the order in which they are listed; the others are techniques' and papers' recipes."""
NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?")
SUFFIX = ".yaml"
SWEEPS = "sweeps"
IMAGENET = "imagenet"


@functools.cache
def named_recipes() -> Mapping[str, Path]:
    """Name → file, the general ones first.

    A name is the file's. Of two files of one name, the outer one has it, or else the one in ``imagenet``; the name of
    the other starts with its folder.
    """
    root = _root()
    files = [path for path in sorted(root.rglob(f"*{SUFFIX}")) if path.parent.name != SWEEPS]
    files.sort(key=lambda path: (len(path.relative_to(root).parts), path.parent.name != IMAGENET))
    found: dict[str, Path] = {}
    for path in files:
        full = path.relative_to(root).with_suffix("").as_posix()
        found.setdefault(path.stem, path)
        if found[path.stem] is not path:
            found[full] = path
    return {**{name: found[name] for name in GENERAL if name in found}, **found}


def recipe_file(given: str | Path, techniques: Mapping[str, object] | None = None) -> Path:
    """The file of a recipe: ``given`` itself if it exists or has a suffix, else the recipe of that name.

    A technique's name, such as ``brecq.brecq``, stands for a recipe that uses the technique.

    Args:
        given: a path or a name.
        techniques: the installed techniques, by name.

    Raises:
        InputError: there is neither such a file nor such a name.
    """
    path, text = Path(given), str(given)
    if path.exists() or path.suffix in (".yaml", ".yml") or not NAME.fullmatch(text):
        return path
    known = named_recipes()
    if text in known:
        return known[text]
    if text in (techniques or {}):
        return _of_technique(text)
    fix = did_you_mean(text, known) or f"such as {', '.join(GENERAL)}; 'qplug recipes' lists all"
    raise InputError(f"there is neither a file nor a recipe '{short(text)}'", where=short(text), fix=fix)


def _of_technique(name: str) -> Path:
    """The recipe that uses the technique and whose name is nearest to that of the technique, or else of its plugin."""
    plugin, _, own = name.partition(".")
    words = [_plain(own), _plain(plugin)]
    ranked = []
    for path in named_recipes().values():
        uses = re.findall(r"\buse: ([\w.]+)", path.read_text(encoding="utf-8"))
        if name in uses and (rank := _rank(_plain(path.stem), words)) is not None:
            ranked.append((rank, uses.index(name), path))
    if not ranked:
        what = f"there is no recipe of the technique '{name}'"
        raise InputError(what, where=name, fix="name another recipe, and add the technique to its techniques")
    return min(ranked, key=lambda one: one[:2])[2]


def _rank(stem: str, words: list[str]) -> int | None:
    """0 if the name is the first word, 1 if the second, then those that begin with one; ``None`` for the others."""
    tests = [*(stem == word for word in words), *(stem.startswith(word) for word in words)]
    return tests.index(True) if any(tests) else None


def is_name(given: str | Path) -> bool:
    """Whether there is a recipe of that name, and no file."""
    return not Path(given).exists() and str(given) in named_recipes()


def description(path: Path) -> str:
    """The first sentence of a recipe's comment."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line[2:].strip())
    return re.split(r"(?<!et al)\.(?: |$)", " ".join(lines), maxsplit=1)[0].rstrip(":")


def layers_of_its_own(quantize: Quantize) -> list[str]:
    """Patterns of overrides that name one numbered layer, such as ``blocks.7.mlp.fc2*``: of the recipe's own model."""
    return [override.match for override in quantize.overrides if re.search(r"\.\d+(?:[.*]|$)", override.match)]


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _root() -> Path:
    """The folder of the recipes: in the wheel beside this file, in a checkout where they live."""
    packaged = Path(__file__).parent / "named_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"
