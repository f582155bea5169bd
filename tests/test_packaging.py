"""What a newcomer reads and types: constraints, README, changelog, and the check that runs before a change is taken."""

import re

import pytest
from paths import ROOT

README = (ROOT / "README.md").read_text()


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_are_exact_and_hold_every_direct_dependency():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z0-9-]+==[0-9][^ ;]*(; python_version >= "3\.11")?', line) for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [entry for extra in project["optional-dependencies"].values() for entry in extra]
    direct = {normal(re.match(r"[A-Za-z0-9._-]+", entry)[0]) for entry in wanted} - {"qplug"}
    assert direct <= {line.partition("==")[0] for line in lines}


def test_the_readme_says_one_command_to_run_and_one_to_test():
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2
    assert all("-c constraints.txt" in command for command in commands)
    assert commands[0].endswith("/qplug run recipes/mptq_vit.yaml")
    assert commands[1].endswith("/pytest")
    assert '"^python3 -m venv .*pytest$" README.md' in (ROOT / ".ci" / "run").read_text()


def test_the_readme_names_recipes_and_techniques_that_exist():
    from qplug.hooks.registry import installed

    for name in re.findall(r"recipes/[\w/]+\.yaml", README):
        assert (ROOT / name).is_file(), name
    known = installed().techniques
    for name in re.findall(r"^\| `(\w+\.\w+)` \|", README, re.MULTILINE):
        assert name in known, name
    families = re.findall(r"^\| `(\w+)\.[\w*]+` \|", README, re.MULTILINE)
    assert {name.partition(".")[0] for name in known} == set(families)


def test_the_readme_shows_the_example_as_it_is():
    example = (ROOT / "plugins/qplug-example-plugin/src/qplug_example_plugin/three_sigma.py").read_text()
    (shown,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class" in block)
    for line in shown.splitlines():
        if "=" in line and "def" not in line:
            assert line in example, line


def test_changelog_entries_are_sentences():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text
    entries = [
        " ".join(entry.split()) for entry in re.findall(r"^- (.*?)(?=\n- |\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    ]
    assert entries
    for entry in entries:
        assert entry.endswith("."), entry
