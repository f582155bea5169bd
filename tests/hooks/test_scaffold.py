"""``qplug new-plugin``: a complete folder or none, under a name that can work."""

from pathlib import Path

import pytest
from paths import ROOT

from qplug import InputError
from qplug.hooks import scaffold
from qplug.hooks.scaffold import new_plugin

EXAMPLE = ROOT / "plugins" / "qplug-example-plugin"


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "package", "prefix"),
    [
        ("qplug-sharp-plugin", "qplug_sharp_plugin", "sharp"),
        ("sharp", "sharp", "sharp"),
        ("My.Sharp-Ranges", "my_sharp_ranges", "my_sharp_ranges"),
        ("qplug-my-qplug-example-plugin-too", "qplug_my_qplug_example_plugin_too", "my_qplug_example_plugin_too"),
    ],
)
def test_it_is_the_example_under_another_name(name, package, prefix, tmp_path):
    folder = new_plugin(name, tmp_path)
    assert folder == tmp_path / name
    assert [path.name for path in tmp_path.iterdir()] == [name]
    project = (folder / "pyproject.toml").read_text()
    assert f'name = "{name}"' in project
    assert f'[project.entry-points.qplug]\n{prefix} = "{package}"' in project
    module = (folder / "src" / package / "three_sigma.py").read_text()
    assert f'Literal["{prefix}.three_sigma"] = "{prefix}.three_sigma"' in module
    assert f"- use: {prefix}.three_sigma" in (folder / "recipe.yaml").read_text()
    assert 'qplug_hook_api = "1"' in (folder / "src" / package / "__init__.py").read_text()
    assert files(folder) == {
        "pyproject.toml",
        "README.md",
        "recipe.yaml",
        f"src/{package}/__init__.py",
        f"src/{package}/three_sigma.py",
        "tests/test_three_sigma.py",
    }
    if "example" not in name:
        for path in files(folder):
            assert "example" not in (folder / path).read_text().lower(), f"{path} still speaks of the example"


def test_the_example_holds_nothing_that_the_copy_leaves_out():
    kept = tuple(scaffold.FILES)
    assert not [path for path in files(EXAMPLE) if not path.startswith(kept) and "cache" not in path]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-x",
        "x-",
        "1st",
        "a b",
        "a/b",
        "../x",
        ".x",
        "ümlaut",
        "x" * 65,
        "class",
        "qplug-class-plugin",
        "qplug-plugin",
    ],
)
def test_a_name_that_cannot_work_is_refused(name, tmp_path):
    with pytest.raises(InputError):
        new_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "owner"), [("json", "module"), ("pydantic", "module"), ("qplug-baseline-plugin", "qplug")]
)
def test_a_name_that_is_taken_is_refused_and_says_by_whom(name, owner, tmp_path):
    with pytest.raises(InputError, match=owner):
        new_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_exists_is_left_alone(tmp_path):
    (tmp_path / "sharp").mkdir()
    with pytest.raises(InputError, match="exists already"):
        new_plugin("sharp", tmp_path)
    assert not list((tmp_path / "sharp").iterdir())


def test_a_missing_parent_is_refused(tmp_path):
    with pytest.raises(InputError, match="not an existing folder"):
        new_plugin("sharp", tmp_path / "missing")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    write = Path.write_text

    def full(self, *args, **kwargs):
        if self.suffix == ".py":
            raise OSError(28, "No space left on device")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="No space left on device"):
        new_plugin("sharp", tmp_path)
    assert not list(tmp_path.iterdir())
