"""``qplug new-plugin``: a plugin of one's own, as a renamed copy of the example plugin, which is real and tested."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

from qplug.core.errors import InputError

EXAMPLE = "qplug-example-plugin"
FILES = ("pyproject.toml", "README.md", "recipe.yaml", "src", "tests")  # as pyproject.toml puts them into the wheel
SUFFIXES = (".py", ".toml", ".md", ".yaml")
NAMES = re.compile(
    r"qplug-example-plugin|qplug_example_plugin|\bexample(?=\.three_sigma)|^example(?= = )", re.MULTILINE
)


def new_plugin(name: str, parent: Path) -> Path:
    """Write the folder ``parent/name``: a distribution with one working technique, and tests that pass as they are.

    Args:
        name: of the distribution: ASCII letters, digits, ``-``, ``_`` and ``.``, beginning with a letter. The package
            is the same with ``_``; the prefix of its techniques leaves out ``qplug`` before and ``plugin`` behind, so
            ``qplug-sharp-plugin`` has ``sharp.three_sigma``.
        parent: an existing folder.

    Returns:
        The new folder. It is complete: it is written beside its place and then renamed.

    Raises:
        InputError: the name cannot be used or is taken, the folder exists, or it cannot be written.
    """
    package, prefix = _names(name)
    target = parent / name
    if target.exists() or target.is_symlink():
        raise InputError("exists already", where=str(target), fix="choose another name, or another folder with --dir")
    if not parent.is_dir():
        raise InputError("is not an existing folder", where=str(parent), fix="make it first")
    words = {EXAMPLE: name, EXAMPLE.replace("-", "_"): package, "example": prefix}
    work = None
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
        _copy(_template(), work, words)
        work.chmod(0o755)  # mkdtemp's is 0o700
        work.rename(target)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror or error}", where=str(target)) from error
    finally:
        if work is not None and work.exists():
            shutil.rmtree(work, ignore_errors=True)
    return target


def _names(name: str) -> tuple[str, str]:
    """The package's name and the prefix of the techniques; raises ``InputError`` for a name that cannot be used."""
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?", name):
        what = f"'{name}' is no name for a distribution"
        raise InputError(what, fix="use up to 64 letters, digits, '-', '_' and '.', beginning with a letter")
    package = re.sub(r"[-_.]+", "_", name).lower()
    prefix = package.removeprefix("qplug_").removesuffix("_plugin")
    for word in (package, prefix):
        if keyword.iskeyword(word) or not word.isidentifier() or word in ("qplug", "plugin"):
            raise InputError(
                f"'{name}' gives '{word}', which Python or qplug keeps for itself", fix="choose another name"
            )
    if package in sys.stdlib_module_names or importlib.util.find_spec(package) is not None:
        what = f"'{name}' gives the package '{package}', which is taken by a module that is installed here"
        raise InputError(what, fix=f"for example qplug-{prefix.replace('_', '-')}-plugin")
    for point in entry_points(group="qplug", name=prefix):
        owner = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        raise InputError(f"'{name}' gives the prefix '{prefix}', which {owner} has", fix="choose another name")
    return package, prefix


def _template() -> Path:
    """The example plugin: in the wheel beside this file, in a checkout where it lives."""
    here = Path(__file__).parent
    packaged = here / "scaffold_template"
    return packaged if packaged.is_dir() else here.parents[1] / "plugins" / EXAMPLE


def _copy(source: Path, target: Path, words: dict[str, str]) -> None:
    for name in FILES:
        for path in sorted([source / name, *(source / name).rglob("*")]):
            if path.suffix not in SUFFIXES or not path.is_file():
                continue  # what running the example's tests left behind
            place = target / _renamed(str(path.relative_to(source)), words)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(_renamed(path.read_text(encoding="utf-8"), words), encoding="utf-8")


def _renamed(text: str, words: dict[str, str]) -> str:
    return NAMES.sub(lambda found: words[found.group()], text)  # in one pass: a new name may contain an old one
