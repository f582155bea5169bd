"""``qplug compare``: a warm one in multiples of what its imports take, a cold one against separate runs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
IMPORTS = "import pydantic, typer, rich, ruamel.yaml, numpy, scipy.stats, networkx, safetensors.numpy"
ROWS = (
    "Baseline|techniques: [{use: tsptq_vit.v_2sf}, {use: tsptq_vit.o_2sf}, {use: baseline.hessian}]",
    "SQ-b|techniques: [{use: mptq_vit.sq_b}, {use: tsptq_vit.v_2sf}, {use: baseline.hessian}]",
    "OPT-m|techniques: [{use: mptq_vit.opt_m}, {use: tsptq_vit.v_2sf}, {use: baseline.hessian}]",
    "both|techniques: [{use: mptq_vit.sq_b}, {use: mptq_vit.opt_m}, {use: baseline.hessian}]",
    "Hessian|techniques: [{use: baseline.hessian}]",
)


def write_recipes(folder: Path) -> list[str]:
    """Five methods on the embedded model."""
    names = []
    for row in ROWS:
        name, techniques = row.split("|")
        text = f"""
version: 1
model: {{source: zoo, name: vit_digits}}
data:
  calibration: {{source: digits, split: train, images: 32}}
  evaluation: {{source: digits, split: test}}
quantize: {{weights: {{bits: 4}}, activations: {{bits: 4}}}}
{techniques}
"""
        (folder / f"{name}.yaml").write_text(text)
        names.append(f"{name}.yaml")
    return names


def seconds(folder: Path, code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=folder)
    return time.perf_counter() - start


def cli(*arguments: str) -> str:
    return f"from qplug.cli import main; main({list(arguments)!r})"


def test_five_recipes_cold_and_warm(tmp_path: Path) -> None:
    names = write_recipes(tmp_path)
    apart = sum(seconds(tmp_path, cli("run", name, "--no-cache", "--out", f"apart/{name}")) for name in names)
    cold = seconds(tmp_path, cli("compare", *names, "--cache", "cache"))
    warm = min(seconds(tmp_path, cli("compare", *names, "--cache", "cache")) for _ in range(3))
    base = min(seconds(tmp_path, IMPORTS) for _ in range(3))
    print(f"five runs apart {apart:.1f} s, compared cold {cold:.1f} s, warm {warm:.2f} s; imports {base:.2f} s")
    assert cold < 0.5 * apart
    assert warm < 3.0 * base
