"""What a newcomer reads and types: constraints, README, docs, changelog, and the check before a change is taken."""

import re

import pytest
from paths import ROOT

README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
TEXTS = {"README.md": README, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(), **PAGES}


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


def test_the_readme_has_one_command_to_run_and_one_to_test():
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2
    assert all("-c constraints.txt" in command for command in commands)
    assert commands[0].endswith("/qplug run recipes/mptq_vit.yaml")
    assert commands[1].endswith("/pytest")
    assert '"^python3 -m venv .*pytest$" README.md' in (ROOT / ".ci" / "run").read_text()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_recipe_that_a_text_names_exists(name):
    for recipe in re.findall(r"recipes/[\w/]+\.yaml", TEXTS[name]):
        assert (ROOT / recipe).is_file(), recipe


def test_every_recipe_is_documented():
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml")}
    rows = re.findall(r"^\| `(recipes/[\w/]+\.yaml)` \|", PAGES["recipes.md"], re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == recipes


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_file_that_a_text_links_to_exists(name):
    folder = ROOT / "docs" if name in PAGES else ROOT
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", TEXTS[name]):
        assert (folder / target).is_file(), target


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    assert set(PAGES) <= set(re.findall(r": ([\w/-]+\.md)$", navigation, re.MULTILINE))


def test_documented_techniques_are_those_that_exist():
    from qplug.hooks.registry import installed

    known = installed().techniques
    page = PAGES["techniques.md"]
    for name in re.findall(r"^\| `(\w+\.\w+)` \|", page, re.MULTILINE):
        assert name in known, name
    families = re.findall(r"^\| `(\w+)\.[\w*]+` \|", page, re.MULTILINE)
    assert {name.partition(".")[0] for name in known} == set(families)
    rows = re.findall(r"^\| `(\w+\.[\w*]+)` \|", page, re.MULTILINE)
    for name in known:
        assert name in rows or f"{name.partition('.')[0]}.*" in rows, name


def test_changelog_entries_are_sentences():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text
    entries = [
        " ".join(entry.split()) for entry in re.findall(r"^- (.*?)(?=\n- |\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    ]
    assert entries
    for entry in entries:
        assert entry.endswith("."), entry
