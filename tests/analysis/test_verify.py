"""``verify`` proves that a run folder's model gives the outputs that were measured, or says what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_toys import relocked
from safetensors.torch import load_file, save_file

import qplug
from qplug import InputError
from qplug.analysis.verify import Verification, verify
from qplug.cli.report.verification import verification_summary, verification_table
from qplug.core.storage.hashing import fingerprint
from qplug.pipeline.proof import compare_outputs, proof
from qplug.testing import toy_registry

RECIPE = """
version: 1
model: {source: toy}
data: {calibration: {source: toy, split: train}, evaluation: {source: toy, split: test, images: 5}}
quantize: {weights: {bits: 4}, activations: {bits: 4}}
techniques: [{use: baseline.minmax}]
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    (path / "recipe.yaml").write_text(RECIPE)
    registry = toy_registry()
    qplug.run(qplug.load_recipe(path / "recipe.yaml", registry=registry), out=path / "run", registry=registry)
    return path / "run"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def checked(folder: Path) -> Verification:
    return verify(folder, registry=toy_registry())


def states(found: Verification) -> dict[str, str]:
    return {check.what: check.state for check in found.checks}


def detail(found: Verification, what: str) -> str:
    return next(check.detail for check in found.checks if check.what == what)


def changed(folder: Path, **values: object) -> None:
    """As if the run had written other values into ``lock.json``."""
    relocked(folder, **values)


def test_a_run_is_proven_bit_for_bit(whole: Path) -> None:
    done: list[tuple[int, int]] = []
    found = verify(whole, registry=toy_registry(), advance=lambda count, total: done.append((count, total)))
    assert found.holds
    assert set(states(found).values()) == {"same"}
    for name in ("quantized outputs", "float outputs"):
        assert detail(found, name) == "5 examples, bit for bit"
    assert (5, 5) in done
    table = verification_table(found)
    assert "nothing differs" in table.title
    assert json.loads(json.dumps(verification_summary(found)))["holds"] is True


def test_a_changed_file_is_named_and_nothing_is_loaded(folder: Path) -> None:
    path = folder / "plan.json"
    path.write_text(path.read_text().replace("min-max", "max-min"))
    found = checked(folder)
    assert not found.holds
    assert "plan.json is not the file that the run wrote" in detail(found, "files")
    assert states(found) == {"files": "differs", "outputs": "not checked"}


def test_weights_that_fit_the_digests_and_not_the_outputs_are_found(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head.bias"] = tensors["head.bias"] + 1e-3
    save_file(tensors, folder / "model.safetensors", {"fingerprint": fingerprint(tensors)})
    relocked(folder)
    found = checked(folder)
    assert not found.holds
    assert states(found)["quantized outputs"] == "differs"
    assert "5 of 5 examples differ, by " in detail(found, "quantized outputs")
    assert states(found)["float outputs"] == "same"


def test_a_figure_that_is_not_that_of_the_outputs_is_found(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "quantized.top1": 0.999}))
    relocked(folder)
    assert states(checked(folder))["top-1"] == "differs"


def test_on_another_machine_outputs_may_differ_in_their_last_bits(folder: Path) -> None:
    lock = json.loads((folder / "lock.json").read_text())
    tensors = load_file(folder / "evaluation.safetensors")
    shaken = tensors["quantized.outputs"] * (1 + 1e-6)
    save_file({**tensors, **proof("quantized", shaken)}, folder / "evaluation.safetensors")
    changed(folder, packages={**lock["packages"], "torch": "1.0"})
    found = checked(folder)
    assert found.holds
    assert "torch " in detail(found, "machine and packages")
    assert "(in the run 1.0)" in detail(found, "machine and packages")
    assert "within 5%" in detail(found, "quantized outputs")
    changed(folder, packages=lock["packages"])
    assert not checked(folder).holds


def test_changed_code_is_no_fault_where_the_outputs_are_the_same(folder: Path) -> None:
    lock = json.loads((folder / "lock.json").read_text())
    lock["code"]["qplug"] |= {"digest": "0", "version": "0.0.1", "files": {"elsewhere.py": "0"}}
    changed(folder, code=lock["code"])
    with pytest.raises(InputError, match=r"the code of qplug is not that of the run: 0\.0\.1 in the run"):
        qplug.load_quantized(folder, registry=toy_registry())
    found = checked(folder)
    assert states(found)["code"] == "differs"
    assert found.holds
    assert "the outputs are those of the run, by other code" in verification_table(found).title


@pytest.mark.parametrize("kind", ["images", "weights", "data"])
def test_what_is_not_at_hand_is_said(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = json.loads((folder / "lock.json").read_text())
    registry = toy_registry()
    if kind == "images":
        changed(folder, hashes={**lock["hashes"], "evaluation_images": "0"})
    elif kind == "weights":
        changed(folder, hashes={**lock["hashes"], "model": "0"})
    else:

        def absent(self: object, seed: int) -> None:
            raise InputError("there is no such folder", where="gone")

        monkeypatch.setattr(registry.datasets["toy"], "open", absent)
    found = verify(folder, registry=registry)
    assert found.holds
    what = "float outputs" if kind == "weights" else "evaluation data"
    assert states(found)[what] == "not checked"
    words = {"images": "are not those of the run", "weights": "other weights than in the run", "data": "not at hand"}
    assert words[kind] in detail(found, what)


def test_files_that_the_run_did_not_write_are_named(folder: Path) -> None:
    (folder / "notes.txt").write_text("")
    found = checked(folder)
    assert found.holds
    assert detail(found, "other files") == "the run did not write notes.txt"


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        checked(tmp_path / "nowhere")


def test_a_proof_holds_the_first_outputs_and_a_digest_of_each() -> None:
    outputs = torch.randn(9, 1 << 16, generator=torch.Generator().manual_seed(0))
    held = proof("quantized", outputs)
    assert held["quantized.sha256"].shape == (9, 32)
    assert held["quantized.outputs"].shape == (4, 1 << 16)
    assert compare_outputs("quantized", held, outputs).equal
    outputs[8, 3] += 1e-3
    found = compare_outputs("quantized", held, outputs)
    assert (found.same, found.change) == (8, 0.0)
    with pytest.raises(ValueError, match="expected outputs of shape"):
        compare_outputs("quantized", held, outputs[:3])


def test_a_plugin_that_is_not_installed_is_no_fault_of_the_folder(folder: Path) -> None:
    registry = toy_registry()
    registry.techniques = {name: one for name, one in registry.techniques.items() if name != "baseline.minmax"}
    with pytest.raises(InputError, match=r"baseline\.minmax"):
        verify(folder, registry=registry)


def test_a_model_that_raises_is_named_in_its_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("qplug.pipeline.answers.answers_of", breaks)
    found = checked(folder)
    assert not found.holds
    assert detail(found, "model") == "the outputs cannot be computed: RuntimeError: no such operator"
