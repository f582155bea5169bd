"""Digests change with every content that results depend on, and only with it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from paths import ROOT
from PIL import Image

from qplug.core.errors import InputError
from qplug.core.examples import Classes
from qplug.core.storage.hashing import code_digest, content_key, file_digest, fingerprint, images_digest
from qplug.data import folder as folders
from qplug.data.folder import Folder, FolderImages
from qplug.testing.run import ToyImages

QPLUG = ROOT / "qplug"


def test_a_key_is_that_of_the_canonical_json() -> None:
    expected = hashlib.sha256(rb'{"a":{"b":[1,2.5,null,true],"c":"\u00e9"},"z":"1"}').hexdigest()
    assert content_key(z="1", a={"c": "é", "b": [1, 2.5, None, True]}) == expected
    assert content_key(a={"b": (1, 2.5, None, True), "c": "é"}, z="1") == expected


def test_keys_of_other_content_differ() -> None:
    parts = [{"a": 1}, {"a": "1"}, {"a": True}, {"a": [1]}, {"a": [1, 2]}, {"a": [2, 1]}, {"b": 1}, {"a": 1, "b": None}]
    assert len({content_key(**part) for part in parts}) == len(parts)
    assert content_key(a=["ab", "c"]) != content_key(a=["a", "bc"])


def test_values_without_canonical_json_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_key(a=float("nan"))
    with pytest.raises(TypeError, match="not JSON serializable"):
        content_key(a=Path("x"))


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 5)
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    status = (tmp_path / "a").stat()
    (tmp_path / "a").write_bytes(content[::-1])
    os.utime(tmp_path / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_digest(tmp_path / "a") == hashlib.sha256(content[::-1]).hexdigest()
    with pytest.raises(InputError, match="the file does not exist") as caught:
        file_digest(tmp_path / "b")
    assert caught.value.where == str(tmp_path / "b")
    with pytest.raises(InputError, match="is a folder, not a file"):
        file_digest(tmp_path)


def fresh(path: Path, module: str) -> str:
    """``code_digest`` in a process that began after every edit."""
    code = f"from qplug.core.storage.hashing import code_digest; print(code_digest({module!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that must not be imported, with a module in a folder of it."""
    (tmp_path / "pack/inner").mkdir(parents=True)
    (tmp_path / "pack/__init__.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "pack/inner/part.py").write_text("WIDTH = 3\n")
    return tmp_path / "pack"


def test_the_code_of_a_module_is_that_of_its_whole_package(package: Path) -> None:
    first = fresh(package.parent, "pack")
    assert len(first) == 64
    assert fresh(package.parent, "pack.inner.part") == first
    shutil.copytree(package, package.parent / "elsewhere/pack")
    assert fresh(package.parent / "elsewhere", "pack") == first


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename", "swap", "compile"])
def test_any_change_of_the_code_is_noticed(package: Path, change: str) -> None:
    part = package / "inner/part.py"
    before, times = fresh(package.parent, "pack"), part.stat()
    if change == "edit":
        part.write_text("WIDTH = 4\n")
        os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "add":
        (package / "new.py").write_text("")
    elif change == "compile":
        (package / "inner/kernel.cpython-311-x86_64-linux-gnu.so").write_bytes(b"x")
    elif change == "remove":
        part.unlink()
    elif change == "rename":
        part.rename(package / "inner/other.py")
    else:
        initial = (package / "__init__.py").read_text()
        (package / "__init__.py").write_text(part.read_text())
        part.write_text(initial)
    assert fresh(package.parent, "pack") != before


def test_files_without_code_are_not_counted(package: Path) -> None:
    before = fresh(package.parent, "pack")
    (package / "notes.txt").write_text("x")
    (package / "inner/__pycache__").mkdir()
    (package / "inner/__pycache__/part.cpython-311.pyc").write_bytes(b"x")
    (package / ".#part.py").symlink_to("somebody@somewhere.1234")  # an editor's lock
    assert fresh(package.parent, "pack") == before


def test_a_module_of_one_file_and_a_package_without_init(tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text("x = 1\n")
    (tmp_path / "beside.py").write_text("x = 1\n")
    (tmp_path / "space/inner").mkdir(parents=True)
    (tmp_path / "space/inner/part.py").write_text("x = 1\n")
    single, space = fresh(tmp_path, "single"), fresh(tmp_path, "space.inner.part")
    (tmp_path / "beside.py").write_text("x = 2\n")
    assert fresh(tmp_path, "single") == single
    (tmp_path / "single.py").write_text("x = 2\n")
    assert fresh(tmp_path, "single") != single
    (tmp_path / "space/inner/part.py").write_text("x = 2\n")
    assert fresh(tmp_path, "space.inner.part") != space


def test_the_digest_of_qplug_excludes_code_that_only_displays_results(tmp_path: Path) -> None:
    shutil.copytree(QPLUG, tmp_path / "qplug", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    before = fresh(tmp_path, "qplug")
    for folder in ("analysis", "cli", "testing"):
        (tmp_path / "qplug" / folder / "__init__.py").write_text('"""Another."""\n')
    template = tmp_path / "qplug/hooks/scaffold_template/src/example.py"  # a wheel has it, and a checkout does not
    template.parent.mkdir(parents=True)
    template.write_text("")
    assert fresh(tmp_path, "qplug") == before
    (tmp_path / "qplug/quantization/quantizers/cli.py").write_text("")
    assert fresh(tmp_path, "qplug") != before


def test_an_edit_during_the_process_gives_a_digest_unique_to_the_process(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(package.parent)
    first = code_digest("pack")
    assert code_digest("pack") == first
    assert fresh(package.parent, "pack") != first  # this process may run code that is older than the files
    (package / "inner/part.py").write_text("WIDTH = 40\n")
    assert code_digest("pack") not in (first, fresh(package.parent, "pack"))
    for path in package.rglob("*.py"):
        os.utime(path, ns=(0, 0))  # as tools that install from an archive do
    assert code_digest("pack") not in (first, fresh(package.parent, "pack"))
    monkeypatch.setattr("qplug.core.storage.hashing._STARTED", time.time_ns())
    assert code_digest("pack") == fresh(package.parent, "pack")


def test_a_file_is_read_once(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(package.parent)
    first = code_digest("pack")
    monkeypatch.setattr("pathlib.Path.open", lambda path, *_: pytest.fail(f"{path} is read again"))
    assert code_digest("pack.inner") == first


def test_code_of_a_script_is_the_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    digests = []
    for width in (1, 1, 2):
        script.write_text(
            f"from qplug.core.storage.hashing import code_digest\nprint(code_digest(__name__), {width})\n"
        )
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
        digests.append(done.stdout.split()[0])
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("module", ["sys", "no_such_package", "no_such_package.inner", "zipimport"])
def test_code_that_is_not_in_files_is_refused(module: str) -> None:
    with pytest.raises(InputError, match=f"no source files of '{module.partition('.')[0]}'"):
        code_digest(module)


def test_code_at_a_prompt_is_refused() -> None:
    code = "from qplug.core.storage.hashing import code_digest; code_digest('__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "InputError: there are no source files of '__main__'" in done.stderr


def photos(root: Path, names: tuple[str, ...]) -> FolderImages:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(root / name)
    return Folder(Folder.Config(source="folder", path=str(root))).open(0)


def test_the_digest_of_images_covers_content_label_and_order(tmp_path: Path) -> None:
    names = ("cat/0.png", "cat/1.png", "dog/2.png")
    images = photos(tmp_path / "a", names)
    same = photos(tmp_path / "b", ("kitten/0.png", "kitten/1.png", "puppy/2.png"))
    assert images_digest(images) == images_digest(same)
    items, root = images._items, tmp_path / "a"
    one_class = Classes({"cat": 0, "dog": 0}, "folder name")
    others = [FolderImages(root, items[:2], images.classes), FolderImages(root, items[::-1], images.classes)]
    others.append(FolderImages(root, items, one_class))
    assert images_digest(others[2], labels=False) == images_digest(images, labels=False) != images_digest(images)
    (tmp_path / "b/kitten/0.png").write_bytes((tmp_path / "b/puppy/2.png").read_bytes())
    assert len({images_digest(examples) for examples in (images, same, *others)}) == 5
    assert images_digest(ToyImages("test", 4, 0)) == images_digest(ToyImages("test", 4, 0))
    assert images_digest(ToyImages("test", 4, 0)) != images_digest(ToyImages("test", 4, 1))


def test_no_image_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(tmp_path, ("cat/0.png",))
    monkeypatch.setattr(folders, "decode", lambda *_: pytest.fail("decoded"))
    assert len(images_digest(images)) == 64


@pytest.mark.parametrize(
    "tensor", [torch.ones(1).expand(1, 1), torch.ones(()).expand(1), torch.zeros(0), torch.ones(3, 2).T]
)
def test_a_fingerprint_does_not_depend_on_strides(tensor: torch.Tensor) -> None:
    plain = torch.tensor(tensor.tolist(), dtype=tensor.dtype).reshape(tensor.shape)
    assert fingerprint({"a": tensor}) == fingerprint({"a": plain})
