"""Draw the stages of a run and the layers of the folders as SVG: python docs/pictures/architecture.py."""

from __future__ import annotations

from html import escape
from pathlib import Path

HERE = Path(__file__).parent
STAGES = (
    ("load", "model, task, data"),
    ("rewrite", "norms, activations"),
    ("finetune", "optional"),
    ("prepare", "sites, specifications"),
    ("calibrate", "statistics"),
    ("smooth", "norms into weights"),
    ("allocate", "bits of each site"),
    ("assign", "quantizers: the plan"),
    ("reconstruct", "block by block"),
    ("train", "optional: QAT"),
    ("evaluate", "against float"),
    ("save", "run folder"),
)
HOOKED = {"rewrite", "smooth", "allocate", "assign", "reconstruct"}
LAYERS = (
    (("api", "models and data in memory"),),
    (("cli", "commands, reports"), ("testing", "contracts, toys")),
    (("analysis", "inspect, sensitivity, compare"), ("export", "formats, parity, bench")),
    (("pipeline", "run, stages, cache"),),
    (("recipe", "schema, checks, overrides"),),
    (("hooks", "specifications, registry"),),
    (("training", "reconstruction, fine-tuning, QAT"),),
    (("quantization", "plan, sites, quantizers, calibration, backends"),),
    (("models", "sources, adapters, folding"),),
    (("data", "sources, streams"),),
    (("core", "errors, types, task, storage"),),
)
STYLE = """
  rect { fill: #ffffff; stroke: #00897b; stroke-width: 1.5 }
  rect.hooked { fill: #e0f2f1 }
  text { font-family: system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #263238; text-anchor: middle }
  .name { font-size: 15px; font-weight: 600 } .about { font-size: 12px }
  .left { text-anchor: start; font-size: 12px }
  path { fill: none; stroke: #546e7a; stroke-width: 1.5; marker-end: url(#arrow) }
"""
ARROW = (
    '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0,0 L8,4 L0,8 z" style="fill:#546e7a;stroke:none;marker-end:none"/></marker>'
)


def box(x: float, y: float, width: float, name: str, about: str, kind: str = "") -> str:
    """One box with its name and a few words."""
    middle = x + width / 2
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="46" rx="6"/>'
        f'<text class="name" x="{middle}" y="{y + 20}">{escape(name)}</text>'
        f'<text class="about" x="{middle}" y="{y + 37}">{escape(about)}</text>'
    )


def save(name: str, width: int, height: int, parts: list[str]) -> None:
    """Write a picture on a white ground, which is readable in a dark page too."""
    ground = f'<rect x="0" y="0" width="{width}" height="{height}" style="fill:#ffffff;stroke:none"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    body = "\n".join([head, f"<style>{STYLE}</style>", f"<defs>{ARROW}</defs>", ground, *parts, "</svg>"])
    (HERE / f"{name}.svg").write_text(body + "\n")


def stages() -> None:
    """Four stages in a row, three rows, from left to right."""
    parts = []
    for index, (name, about) in enumerate(STAGES):
        row, column = divmod(index, 4)
        x, y = 20 + column * 210, 20 + row * 86
        parts.append(box(x, y, 170, name, about, "hooked" if name in HOOKED else ""))
        if column < 3:
            parts.append(f'<path d="M{x + 170},{y + 23} H{x + 208}"/>')
        elif row < 2:
            parts.append(f'<path d="M{x + 85},{y + 46} V{y + 66} H105 V{y + 84}"/>')
    parts.append('<rect class="hooked" x="20" y="272" width="24" height="16" rx="3"/>')
    parts.append('<text class="left" x="52" y="285">techniques take part through hooks</text>')
    save("stages", 840, 306, parts)


def layers() -> None:
    """Layers from the top; a layer with two folders shares its width."""
    parts = []
    for row, folders in enumerate(LAYERS):
        y, width = 16 + row * 56, (560 - 12 * (len(folders) - 1)) / len(folders)
        parts += [box(16 + i * (width + 12), y, width, f"{name}/", about) for i, (name, about) in enumerate(folders)]
    parts.append('<path d="M600,20 V616"/><text class="left" x="612" y="318">imports</text>')
    save("layers", 680, 640, parts)


if __name__ == "__main__":
    stages()
    layers()
