"""Whether a run folder is what its run wrote, and whether its model still gives the outputs that were measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qplug.core.errors import InputError, QplugError
from qplug.core.text import listed
from qplug.hooks.registry import Registry, component, installed
from qplug.models.in_memory import NotGiven
from qplug.pipeline.read_run import Run, read_run
from qplug.recipe.allow_code import CodeNotAllowed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qplug.core.examples import Examples, Labels
    from qplug.pipeline.load_run import LoadedRun
    from qplug.pipeline.proof import Comparison
    from qplug.recipe import AllowCode

State = Literal["same", "differs", "not checked"]
TOLERANCE = 0.05
"""Largest change of outputs, relative to their norm, on another machine or with other packages. Rounding noise of 1e-6
in every operation moves the logits of DeiT-Ti at W8A8 by 4 %: values at the edge of a code fall on its other side."""


@dataclass(frozen=True)
class Check:
    """One check of a run folder: what was checked, the result, and the details in words."""

    what: str
    state: State
    detail: str = ""


@dataclass
class Verification:
    """All checks of one run folder."""

    folder: Path
    checks: list[Check] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing differs. Other code and other images are no fault where the outputs are proven the same."""
        states = {check.what: check.state for check in self.checks}
        proven = states.get("quantized outputs") == "same"
        return not any(state == "differs" and not (proven and what == "code") for what, state in states.items())

    @property
    def proven_by_other_code(self) -> bool:
        """Whether the code is not that of the run, and gives the same outputs."""
        return self.holds and any(check.what == "code" and check.state == "differs" for check in self.checks)

    def add(self, what: str, state: State, detail: str = "") -> None:
        """Append a check."""
        self.checks.append(Check(what, state, detail))


def verify(
    folder: str | Path,
    device: str | None = None,
    registry: Registry | None = None,
    advance: Callable[[int, int], None] | None = None,
    allow_code: AllowCode = False,
) -> Verification:
    """Check the digests of a run folder and its code; with the data at hand, compute its outputs again.

    On the run's machine with the same packages, the outputs must be equal bit for bit; elsewhere, within ``TOLERANCE``.

    Args:
        folder: a run folder.
        device: where to compute; the run's device unless given, or the CPU where it is absent.
        registry: the installed plugins unless given.
        advance: called with the examples done and their number.
        allow_code: whether the run's recipe may name code from outside the installed packages, as ``load_recipe``.

    Raises:
        InputError: the folder cannot be read as a run folder, names something that is not installed, or ``device`` is
            absent.
    """
    registry = registry or installed()
    run = read_run(folder)
    found = Verification(run.folder)
    errors = run.check_files()
    detail = "; ".join(f"{Path(error.where).name} {error.what}" for error in errors)
    found.add("files", "differs" if errors else "same", detail or f"{len(run.lock.files)} files, by SHA-256")
    if others := run.added():
        found.add("other files", "not checked", f"the run did not write {listed(others, 5)}")
    if errors:
        found.add("outputs", "not checked", "the files are not those of the run")
        return found
    from qplug.pipeline.load_run import recipe_of

    recipe_of(run, registry, allow_code)  # what is not installed, or not allowed, is no fault of the folder
    try:
        _verify_outputs(found, run, device, registry, advance, allow_code)
    except NotGiven as error:
        found.add("outputs", "not checked", error.what)
    except QplugError as error:
        if isinstance(error, CodeNotAllowed) or (device is not None and error.where == "--device"):
            raise
        found.add("model", "differs", " ".join(f"{error.where}: {error.what}".split()))
    except Exception as error:  # of a model, or of a quantizer of a plugin: other run folders are still verified
        words = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        found.add("model", "differs", f"the outputs cannot be computed: {words}")
    return found


def _verify_outputs(
    found: Verification,
    run: Run,
    device: str | None,
    registry: Registry,
    advance: Callable[[int, int], None] | None,
    allow_code: AllowCode,
) -> None:
    from qplug.core.device import parse_device
    from qplug.pipeline.load_run import load_planned
    from qplug.pipeline.proof import compare_outputs

    where = run.lock.machine.device if device is None else device
    if device is None:
        with suppress(InputError):
            parse_device(where)
            device = where
    device = device or "cpu"
    parse_device(device)
    planned = load_planned(run.folder, registry, changed_code=True, allow_code=allow_code)
    found.add("code", "differs" if planned.code_changes else "same", "; ".join(planned.code_changes))
    others = differences(run, device)
    found.add("machine and packages", "same", f"other than in the run: {'; '.join(others)}" if others else "")
    examples = _examples(found, planned, registry)
    if examples is None:
        return
    held = _held(run)
    for name, model in (("quantized", _quantized), ("float", _float)):
        made = model(planned, registry, device)
        if isinstance(made, str):
            found.add(f"{name} outputs", "not checked", made)
            continue
        outputs, labels = _outputs(made, planned, examples, registry, device, advance)
        try:
            comparison = compare_outputs(name, held, outputs)
        except (KeyError, ValueError) as error:
            found.add(f"{name} outputs", "differs", f"the model has outputs of another shape: {error}")
            continue
        found.add(f"{name} outputs", *_judged(comparison, others))
        if name == "quantized":
            _verify_metrics(found, planned, outputs, labels, exact=not others)


def differences(run: Run, device: str) -> list[str]:
    """What of the machine and of the packages is not as in the run, so that outputs may differ in their last bits."""
    from qplug.pipeline.run_key import machine, versions

    now, then = machine(device), run.lock.machine
    pairs = {
        "device": (then.device.partition(":")[0], device.partition(":")[0]),
        "device name": (then.device_name, now["device_name"]),
        "processor": (then.processor, now["processor"]),
        "instructions": (then.instructions, now["instructions"]),
        "torch threads": (then.torch_threads, now["torch_threads"]),
        **{name: (run.lock.packages.get(name), number) for name, number in versions().items()},
    }
    return [f"{name} {ours} (in the run {theirs})" for name, (theirs, ours) in pairs.items() if ours != theirs]


def _examples(found: Verification, planned: LoadedRun, registry: Registry) -> Examples | None:
    """The evaluation examples of the run, where they are at hand."""
    from qplug.core.storage.hashing import images_digest
    from qplug.pipeline.run_key import EVALUATION_SEED

    try:
        examples: Examples = component(registry.datasets, planned.recipe.data.evaluation).open(EVALUATION_SEED)
        digest = images_digest(examples)
    except InputError as error:
        found.add("evaluation data", "not checked", f"not at hand: {error.where}: {error.what}")
        return None
    if digest != planned.run.lock.hashes.evaluation_images:
        found.add("evaluation data", "not checked", "the examples or labels at this place are not those of the run")
        return None
    found.add("evaluation data", "same", f"{len(examples)} examples")
    return examples


def _held(run: Run) -> dict[str, Tensor]:
    import torch

    return {name: torch.from_numpy(values) for name, values in run.evaluation.items()}


def _quantized(planned: LoadedRun, registry: Registry, device: str) -> nn.Module | str:
    from qplug.pipeline.load_run import load_quantized

    return load_quantized(planned.run.folder, device, registry, changed_code=True, allow_code=True)


def _float(planned: LoadedRun, registry: Registry, device: str) -> nn.Module | str:
    try:
        source = component(registry.models, planned.recipe.model).load()
    except InputError as error:
        return f"the float model is not at hand: {error.what}"
    if source.fingerprint != planned.run.lock.hashes.model:
        return "the float model at this place has other weights than in the run"
    module: nn.Module = source.module.to(device)
    return module


def _outputs(
    model: nn.Module,
    planned: LoadedRun,
    examples: Examples,
    registry: Registry,
    device: str,
    advance: Callable[[int, int], None] | None,
) -> tuple[Tensor, Labels]:
    """Outputs and labels of every example, computed as in the run."""
    import torch

    from qplug.core.device import full_float32
    from qplug.data.loading import batches
    from qplug.hooks.registry import backend_of
    from qplug.pipeline.answers import answers_of

    def progress(done: int) -> None:
        if advance is not None:
            advance(done, len(examples))

    transform = planned.preprocessing.transform()
    batch_size = planned.recipe.data.batch_size
    task = planned.task
    stream = batches(examples, transform, batch_size, torch.device(device), task.collect, task.missing)
    with full_float32(), backend_of(planned.recipe.backend, registry).inference(model):
        (answers,), labels = answers_of([model], stream, progress, task)
    return answers.outputs, labels


def _judged(found: Comparison, others: list[str]) -> tuple[State, str]:
    if found.equal:
        return "same", f"{found.examples} examples, bit for bit"
    words = f"{found.examples - found.same} of {found.examples} examples differ, by {found.change:.1e} of their norm"
    if others and found.change <= TOLERANCE:
        return "same", f"{words}, within {TOLERANCE:.0%} for {'; '.join(others)}"
    return "differs", f"{words}" + (f", more than {TOLERANCE:.0%}" if others else "; machine and packages are the same")


def _verify_metrics(found: Verification, planned: LoadedRun, outputs: Tensor, labels: Labels, *, exact: bool) -> None:
    """Compare the score of ``metrics.json`` with that of the outputs, and with that of the examples in the run folder.

    A score that is no mean over examples, such as an average precision, has no second witness in the run folder.
    """
    from qplug.core.task import Features

    run, task = planned.run, planned.task.settled(labels)
    again = task.judge(outputs, labels) if task.score == run.score_key else None
    if again is None or (planned.recipe.data.training is not None and isinstance(task, Features)):
        found.add(run.score_title, "not checked", "it needs more than the quantized model's outputs")
        return
    values = {"metrics.json": run.score}
    if run.is_right is not None:
        values["evaluation.safetensors"] = float(run.is_right.mean())
    values["computed again"] = again
    words = ", ".join(f"{name} {100 * value:.2f} %" for name, value in values.items())
    of_examples = values.get("evaluation.safetensors", run.score)
    close = math.isclose(run.score, of_examples, abs_tol=1e-9) and math.isclose(
        run.score, again, abs_tol=1e-9 if exact else TOLERANCE
    )
    found.add(run.score_title, "same" if close else "differs", words)
