"""Draw what a command prints on a terminal as an SVG, with the fonts of the reader.

python docs/pictures/draw.py docs/pictures/compare.svg 9 qplug compare recipes/mptq_vit.yaml recipes/hawq.yaml \
    recipes/brecq.yaml recipes/mr_biq.yaml recipes/qat.yaml
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 126
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def printed(command: list[str]) -> str:
    """What ``command`` writes to a terminal of ``WIDTH`` columns, with its colours."""
    reader, terminal = pty.openpty()
    environment = os.environ | {"COLUMNS": str(WIDTH)}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=terminal, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(terminal)
    chunks: list[bytes] = []
    with suppress(OSError):  # how Linux reports the end of a terminal
        while chunk := os.read(reader, 65536):
            chunks.append(chunk)
    os.close(reader)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return b"".join(chunks).decode().replace("\r\n", "\n")


def draw(path: Path, lines: int, command: list[str]) -> None:
    """Write the first ``lines`` lines of ``command``'s output to ``path``."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    shown = [line.rstrip() for line in printed(command).strip().splitlines()][:lines]
    console.print(Text.from_ansi("\n".join(shown)), no_wrap=True, crop=True)
    words = [Path(word).name if word.endswith("qplug") else word for word in command]
    title = " ".join(word for word in words if not word.startswith("--"))
    svg = console.export_svg(title=title if len(title) < 90 else " ".join(words[:2]) + " …")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)  # rich's fonts are on another server
    svg = svg.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")
    path.write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE))


if __name__ == "__main__":
    draw(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
