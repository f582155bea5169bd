"""Metadata of an exported file: the run, the preprocessing, the plan and the comparison with the simulation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qplug.core.version import __version__
from qplug.export.cpu import SATURATING, processor

if TYPE_CHECKING:
    from qplug.export.calls import Call
    from qplug.export.formats.table import ExportFormat
    from qplug.export.parity.result import Parity
    from qplug.pipeline.load_run import LoadedRun

EXACT_PRODUCTS = "exact on every processor"
NOT_VERIFIED = "not verified: exported with --no-verify"


def metadata(
    planned: LoadedRun, row: ExportFormat, calls: Sequence[Call], parity: Parity | None, inexact: bool = False
) -> dict[str, str]:
    """Keys ``qplug.…`` → texts. ``inexact`` says that products of the file may saturate on some processors.

    The texts are JSON, except for the version, the format, the products and a parity that is ``NOT_VERIFIED``.
    """
    values = {
        "run": _run(planned),
        "preprocessing": _preprocessing(planned),
        "plan": [
            {
                "site": decision.site.name,
                "kind": decision.site.kind.value,
                "bits": decision.quantizer.bits,
                "quantizer": decision.quantizer.describe(),
                "technique": decision.technique,
            }
            for decision in planned.plan
        ],
        "float_sites": planned.plan.float_sites,
        "operations": [dataclasses.asdict(call) for call in calls],
    }
    texts = {f"qplug.{key}": json.dumps(value, ensure_ascii=False, default=str) for key, value in values.items()}
    checked = NOT_VERIFIED if parity is None else json.dumps(parity.summary() | {"processor": processor()})
    products = {"qplug.products": SATURATING if inexact else EXACT_PRODUCTS} if row.integer_products else {}
    return {"qplug.version": __version__, "qplug.format": row.name, **products, **texts, "qplug.parity": checked}


def _run(planned: LoadedRun) -> dict[str, Any]:
    lock, metrics = planned.run.lock, planned.run.metrics
    scores = [f"{model}.{planned.run.score_key}" for model in ("float", "quantized")]
    return {
        "qplug": lock.qplug,
        "run_key": lock.run_key,
        "model": lock.hashes.model,
        "recipe": planned.recipe.name,
        "seed": planned.recipe.seed,
        "code_changes": planned.code_changes,
        "measured": {key: metrics.get(key) for key in (*scores, "images.evaluation")},
    }


def _preprocessing(planned: LoadedRun) -> dict[str, Any]:
    """The preprocessing's kind and fields, without those outside its ``repr``, such as a tokenizer's long text."""
    preprocessing = planned.preprocessing
    if not dataclasses.is_dataclass(preprocessing):
        return {"kind": type(preprocessing).__name__, "repr": repr(preprocessing)}
    names = [field.name for field in dataclasses.fields(preprocessing) if field.repr]
    return {"kind": type(preprocessing).__name__, **{name: getattr(preprocessing, name) for name in names}}
