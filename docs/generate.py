"""Write the reference pages while MkDocs builds the site; mkdocs.yml names this file."""

from __future__ import annotations

import sys
from pathlib import Path

import mkdocs_gen_files

sys.path.insert(0, str(Path(__file__).parent))

from generators import commands, hooks, recipe, techniques  # found through the line above

PAGES = {"reference/hooks.md": hooks.page, "reference/recipe.md": recipe.page, "reference/commands.md": commands.page}


def write(path: str, text: str) -> None:
    """Add one page to the site."""
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(text)


def main() -> None:
    """Write every page, and list the technique pages in the navigation."""
    for path, page in PAGES.items():
        write(path, page())
    listed = []
    for plugin, text in techniques.pages().items():
        write(f"reference/techniques/{plugin}.md", text)
        listed.append({plugin: f"reference/techniques/{plugin}.md"})
    navigation = mkdocs_gen_files.config["nav"]
    (reference,) = (entry["Reference"] for entry in navigation if "Reference" in entry)
    reference[:] = [entry for entry in reference if "Techniques" not in entry] + [{"Techniques": listed}]


main()
