"""The error for a file that fails the parity check: the first place that differs, and by how much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qplug.core.errors import ParityError
from qplug.core.text import listed
from qplug.export.parity.fused import FUSED
from qplug.export.parity.result import FREE_RUN, TOP1, Parity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qplug.pipeline.load_run import LoadedRun
    from qplug.quantization.plan import Plan

FIX = "nothing was written; to find the cause, write the file with --no-verify, which its metadata will state"
LISTED_PLACES = 5
"""Differing places that a message names."""


def suspects(parity: Parity, plan: Plan) -> Iterable[str]:
    """The operations whose products may be the cause of the first difference.

    Operands are computed between operations, so no product makes them differ, unless the file merges the operations
    before them. An output is that of its operation alone. Logits depend on every operation.
    """
    place = parity.first_wrong
    if place is None:
        return ()
    operation, role = place
    if role == "output" and operation:
        return (operation,)
    return plan.modules() if role in (FUSED, FREE_RUN, TOP1) else parity.joined


def refusal(parity: Parity, planned: LoadedRun, caution: str | None = None) -> ParityError:
    """The error for a file that differs from the simulation.

    Args:
        parity: with a ``first_wrong``.
        planned: the run that the file was made from.
        caution: a known cause on this machine.
    """
    place = parity.first_wrong
    assert place is not None
    operation, role = place
    fix = f"{caution}; {FIX}" if caution else FIX
    if role == TOP1:
        what = (
            f"expected the simulation's top-1 as often as under rounding noise of 1e-6, which is for {parity.steady} "
            f"of {parity.images} images, received it for {parity.agreeing}"
        )
        return ParityError(what, where="logits", fix=fix)
    if role == FREE_RUN:
        what = (
            "expected the simulation's logits, each side running on its own; "
            f"the runtime's differ by {parity.free}; rounding noise of 1e-6 moves them by {parity.rounding_noise:.1e}"
        )
        return ParityError(what, where="logits", fix=fix)
    if role == FUSED:
        what = (
            "expected the simulation's output behind kernels that the runtime may fuse; "
            f"the runtime's differs by {parity.fused[operation]}; all operations agree by themselves"
        )
        return ParityError(what, where=operation or "logits", fix=fix)
    wrong = [" ".join(reversed(place)) for place, difference in parity.places.items() if not difference.agrees]
    what = (
        f"expected the simulation's {role} for the same operands, received one that differs by {parity.places[place]}; "
        f"{len(wrong)} of {len(parity.places)} places differ: {listed(wrong, LISTED_PLACES)}"
    )
    quantizers = ", ".join(f"{role}: {q.describe()}" for role, q in planned.plan.of(operation).items())
    return ParityError(what, where=f"{operation} ({quantizers})" if quantizers else operation or "logits", fix=fix)
