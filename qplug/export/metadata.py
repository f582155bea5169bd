"""What a file says of the run that it was made from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qplug.core.version import __version__
from qplug.export.cpu import INTEGER, SATURATING, processor

if TYPE_CHECKING:
    from qplug.export.calls import Call
    from qplug.export.parity.check import Parity
    from qplug.pipeline.load_run import LoadedRun

EXACT = "exact on every processor"
NOT_VERIFIED = "not verified: exported with --no-verify"


def metadata(
    planned: LoadedRun, form: str, calls: Sequence[Call], parity: Parity | None, saturating: bool = False
) -> dict[str, str]:
    """Keys ``qplug.…`` → text, JSON but for the version, the format, its products and a parity that nobody checked."""
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
    texts = {f"qplug.{key}": json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    checked = NOT_VERIFIED if parity is None else json.dumps(parity.summary() | {"processor": processor()})
    products = {"qplug.products": SATURATING if saturating else EXACT} if form in INTEGER else {}
    return {"qplug.version": __version__, "qplug.format": form, **products, **texts, "qplug.parity": checked}


def _run(planned: LoadedRun) -> dict[str, Any]:
    lock, metrics = planned.run.lock, planned.run.metrics
    return {
        "qplug": lock.get("qplug"),
        "run_key": lock.get("run_key"),
        "model": lock.get("hashes", {}).get("model"),
        "recipe": planned.recipe.name,
        "seed": planned.recipe.seed,
        "measured": {key: metrics.get(key) for key in ("float.top1", "quantized.top1", "images.evaluation")},
    }


def _preprocessing(planned: LoadedRun) -> dict[str, Any]:
    """The fields of the model's preparation; a long text such as a tokenizer's, known by its digest, is left out."""
    how = planned.preprocessing
    if not dataclasses.is_dataclass(how):
        return {"kind": type(how).__name__, "repr": repr(how)}
    shown = {field.name: getattr(how, field.name) for field in dataclasses.fields(how) if field.repr}
    return {"kind": type(how).__name__, **shown}
