"""A run folder is one piece: whatever of it is not what the run wrote is refused by name, before it is used."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from run_toys import decision, relocked, write_run

from qplug.core.errors import InputError
from qplug.pipeline.read_run import Run, read_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "one", decisions=[decision("a.weight")])


def read(folder: Path) -> Run:
    """With everything that a comparison reads."""
    run = read_run(folder)
    assert run.recipe["version"] == 1
    assert len(run.plan["decisions"]) == 1
    assert len(run.evaluation["labels"]) == 40
    return run


def refusal(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 800
    return caught.value


def test_a_whole_folder_is_read(folder: Path) -> None:
    run = read(folder)
    assert run.metrics["quantized.top1"] == 0.5
    assert run.lock.hashes.model == "m"
    assert run.check_files() == []


def test_an_unknown_coverage_is_a_figure(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", **{"coverage.macs": None, "bops_g": None, "quantized.logit_sqnr_db": None})
    assert read_run(run).metrics["coverage.macs"] is None


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "plan.json", "metrics.json", "evaluation.safetensors", "model.safetensors"]
)
def test_a_file_of_another_run_is_refused_by_name(folder: Path, tmp_path: Path, name: str) -> None:
    from run_toys import resolved

    other = write_run(tmp_path / "two", resolved("b", 1, 6), 0.25, decisions=[decision("a.weight", 6)], seconds=2.0)
    (folder / name).write_bytes((other / name).read_bytes() + b"\n" * (name == "model.safetensors"))
    try:
        errors = read_run(folder).check_files()
    except InputError as error:
        errors = [error]
    assert [Path(error.where).name for error in errors] == [name]
    assert "is not the file that the run wrote" in errors[0].what
    assert "one piece" in errors[0].fix


def test_one_changed_digit_of_the_plan_is_refused(folder: Path) -> None:
    path = folder / "plan.json"
    path.write_text(path.read_text().replace('"scale": 0.5', '"scale": 0.6'))
    error = refusal(folder)
    assert "its content differs from lock.json" in error.what
    assert error.where == str(path)


def test_a_changed_lock_is_noticed(folder: Path) -> None:
    path = folder / "lock.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert "does not have the digest that it states" in refusal(folder).what


def test_an_older_format_is_explained(folder: Path) -> None:
    (folder / "lock.json").write_text('{"format": 4, "qplug": "0.1.0"}')
    error = refusal(folder)
    assert "format 5 was expected, received 4, of qplug 0.1.0; formats before 5 hold no digests" in error.what
    assert "run its recipe again: qplug run " in error.fix


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("lock.json", '{"format": 99}', "of format 5 was expected, received 99"),
        ("lock.json", "{}", "received None"),
        ("lock.json", "[]", "expected a JSON object, received list"),
        ("lock.json", "", "cannot be read"),
        ("lock.json", '{"format": NaN}', "NaN is no number of JSON"),
        ("lock.json", DEEP, "nested too deeply"),
        ("lock.json", '{"format": ' + "9" * 5000 + "}", "cannot be read"),
        ("lock.json", '{"format": 5, "digest": ' + "[" * 500 + "]" * 500 + "}", "digest that it states"),
        ("metrics.json", "{", "is not the file that the run wrote"),
        ("recipe.yaml", "a: [", "is not the file that the run wrote"),
    ],
)
def test_text_that_the_run_did_not_write(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    assert message in refusal(folder).what


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def without(key: str) -> Callable[[dict], None]:
    return lambda values: values.pop(key)


def put(key: str, value: object) -> Callable[[dict], None]:
    return lambda values: values.update({key: value})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "metrics.json",
            lambda m: m.clear(),
            "holds no metrics of a run: bits.weights_mean: field required (and 4 more)",
        ),
        ("metrics.json", put("quantized.top1", "0.5"), "quantized.top1: input should be a valid number"),
        ("metrics.json", put("quantized.top1", None), "quantized.top1 must be a number"),
        ("metrics.json", put("mine.kl", {"a": 1}), "mine.kl: input should be a valid number"),
        ("metrics.json", put("size_mb", [1.0]), "size_mb: input should be a valid number"),
        ("metrics.json", put("images.evaluation", 2.5), "images.evaluation: input should be a valid integer"),
        ("metrics.json", put("images.evaluation", 41), "expected 41 values of 'labels', as metrics.json says"),
        ("metrics.json", put("warnings", "none"), "warnings: input should be a valid list"),
        ("plan.json", lambda p: p.clear(), "received a plan of format None, this version reads format 1"),
        ("plan.json", without("decisions"), "holds no plan: decisions: field required"),
        ("plan.json", lambda p: p["decisions"][0]["quantizer"].update(bits=10**30), "decisions.0.quantizer.bits"),
        ("plan.json", lambda p: p["decisions"][0]["quantizer"].update(bits="4"), "decisions.0.quantizer.bits"),
        ("plan.json", lambda p: p["decisions"][0]["site"].pop("name"), "decisions.0.site.name: field required"),
        ("plan.json", put("changes", [3]), "holds no plan: changes.0"),
    ],
)
def test_values_that_no_run_writes_are_refused_though_the_digests_match(
    folder: Path, name: str, change: Callable[[dict], None], message: str
) -> None:
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    relocked(folder)
    assert message in refusal(folder).what


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1", "holds no recipe of a run: name"),
        ("a", "expected a mapping at the top"),
        ("a: [", "this is not YAML"),
        ("", "the recipe is empty"),
        (LAUGHS, "more than 20000 values"),
        ("a: " + "[" * 3000, "is nested more than 64 levels"),
        ("a: !!python/object/apply:os.system [ls]", "is not allowed"),
    ],
)
def test_a_recipe_is_read_as_every_recipe_is(folder: Path, text: str, message: str) -> None:
    (folder / "recipe.yaml").write_text(text)
    relocked(folder)
    assert message in str(refusal(folder))


@pytest.mark.parametrize("key", ["hashes", "machine", "code", "files", "run_key", "seed"])
def test_a_lock_without_a_key_is_refused(folder: Path, key: str) -> None:
    lock = json.loads((folder / "lock.json").read_text())
    (folder / "lock.json").write_text(json.dumps({k: v for k, v in lock.items() if k != key}))
    assert "digest that it states" in refusal(folder).what
    relocked(folder, **{key: "text"})
    if key not in ("files", "run_key"):
        assert f"{key}: input should be" in refusal(folder).what


@pytest.mark.parametrize("name", ["lock.json", "recipe.yaml", "plan.json", "metrics.json", "evaluation.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "device", "dangling", "absent", "empty", "huge"])
def test_what_is_no_file_of_the_run_is_refused_unread(
    folder: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / name
    path.unlink()
    monkeypatch.chdir(folder)  # a socket's path is short
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as open_socket:
            open_socket.bind(name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "empty":
        path.touch()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)  # without blocks on the disk
    words = {"folder": "a folder", "fifo": "a pipe", "socket": "a socket", "device": "a character device"}
    assert words.get(kind, "") in refusal(folder).what


def test_names_of_files_stay_in_the_folder(folder: Path) -> None:
    lock = json.loads((folder / "lock.json").read_text())
    relocked(folder, files={**lock["files"], "../other": {"bytes": 0, "sha256": ""}})
    assert "'../other'" in refusal(folder).what or "../other missing" in refusal(folder).what


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        read_run(tmp_path / "one")
