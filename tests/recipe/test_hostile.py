"""Recipes that attack the reader: each ends at a line and a column, at once, and with a short message."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_toys import GOOD, registry

from qplug.core.errors import InputError, RecipeError
from qplug.recipe import load_recipe
from qplug.recipe.load import read_tree
from qplug.recipe.report import SCREEN_LINES, render_problems
from qplug.recipe.yaml_tree import MAX_DEPTH, MAX_NODES, Node, Place, Reader, Source


def read(text: str) -> tuple[Node | None, list[str]]:
    problems: list = []
    root = Reader(Source("f", tuple(text.splitlines()) or ("",)), problems).read(text)
    return root, [str(problem).splitlines()[0] for _, problem in problems]


def problems_of(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, registry())
    shown = "\n".join(map(str, render_problems(caught.value.problems)))
    assert len(shown.splitlines()) <= SCREEN_LINES
    assert max(map(len, shown.splitlines())) < 300 + len(str(path))
    assert shown.replace("\n", "").isprintable()
    return [str(problem).replace(f"{path}:", "") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('a: 1\nb: "\\U00110000"', "f:2:7: this is not YAML: an escape that is no character"),
        ('a: "\\UFFFFFFFF"', "f:1:7: this is not YAML: an escape that is no character"),
        ('"\\U00110000": 1', "f:1:4: this is not YAML: an escape that is no character"),
        ("%YAML 9.9\n---\na: 1", "f:1:1: this is not YAML: found incompatible YAML document"),
        ("%YAML 1.9\n---\na: 1", "f:2:4: this is not YAML: a version other than 1.1 and 1.2"),
        ("%YAML x\n---\na: 1", "f:1:7: this is not YAML: expected a digit"),
        ("a: 1\nb: \x00", "f:2:4: this is not YAML: the character \\x00 is not allowed"),
        ('a: 1\nb: !!int "_"', "f:2:4: cannot be read as a value of type int: '_'"),
        ('"\\ud83d": 1', "f:1:1: expected whole characters, received half of one"),
        ('a: !!int ""', "f:1:4: cannot be read as a value of type int: ''"),
        ("a: !!int 0x", "f:1:4: cannot be read as a value of type int: '0x'"),
        ("a: !!int", "f:1:4: cannot be read as a value of type int: ''"),
        ('a: !!float "_"', "f:1:4: cannot be read as a value of type float: '_'"),
        ('a: !!float ""', "f:1:4: cannot be read as a value of type float: ''"),
        ("a: !!float 1:x", "f:1:4: cannot be read as a value of type float: '1:x'"),
        ("a: !!bool maybe", "f:1:4: cannot be read as a value of type bool: 'maybe'"),
        ("a: !!null x", "f:1:4: cannot be read as a value of type null: 'x'"),
        ("a: !!int [1]", "f:1:4: the tag 'tag:yaml.org,2002:int' is not allowed here"),
        ("a: !!str {b: 1}", "f:1:4: the tag 'tag:yaml.org,2002:str' is not allowed here"),
        ("a: !!map x", "f:1:4: the tag 'tag:yaml.org,2002:map' is not allowed here"),
        ("a: !!seq {}", "f:1:4: the tag 'tag:yaml.org,2002:seq' is not allowed here"),
        ('a: !!binary "_"', "f:1:4: the tag 'tag:yaml.org,2002:binary' is not allowed here"),
        ("a: !!set {b}", "f:1:4: the tag 'tag:yaml.org,2002:set' is not allowed here"),
        ("a: !!omap [b: 1]", "f:1:4: the tag 'tag:yaml.org,2002:omap' is not allowed here"),
        ("a: !" + "t" * 100_000 + " x", "f:1:4: the tag '!ttttt"),
        ("[" * 300, f"f:1:{MAX_DEPTH + 1}: is nested more than {MAX_DEPTH} levels deep"),
        ("a: " + "{a: " * 200, f"f:1:{4 * MAX_DEPTH - 3}: is nested more than"),
        ("- " * 300, f"f:1:{2 * MAX_DEPTH + 1}: is nested more than"),
        ("".join(f"{' ' * i}a:\n" for i in range(100)), f"f:{MAX_DEPTH}:{MAX_DEPTH}: is nested more than"),
    ],
    ids=lambda text: repr(text[:24]),
)
def test_each_problem_has_its_line(text: str, said: str) -> None:
    _, problems = read(text)
    assert problems[0].startswith(said)
    assert len(problems[0]) < 200


def test_escaped_halves_of_a_character_are_put_together() -> None:
    root, said = read('{"\\ud83d\\ude00": "\\ud83d\\ude00"}')
    assert said == []
    assert root is not None
    assert {key: node.value for key, node in root.value.items()} == {"😀": "😀"}


def test_aliases_count_where_they_are_used() -> None:
    chain = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 100))
    assert "is nested more than" in read(chain)[1][0]
    laughs = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))
    assert f"more than {MAX_NODES} values" in read(laughs)[1][0]
    root, problems = read("a: &a {b: 1}\nc: &a [2]\nd: *a")  # an anchor may be given again
    assert root is not None
    assert root.plain()["d"] == [2]
    assert problems == []


def test_reading_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a large file is not even parsed."""
    from ruamel.yaml.scanner import Scanner

    scanned = 0
    fetch = Scanner.fetch_plain

    def counted(self: Scanner) -> object:
        nonlocal scanned
        scanned += 1
        return fetch(self)

    monkeypatch.setattr(Scanner, "fetch_plain", counted)
    monkeypatch.setattr("qplug.recipe.yaml_tree.MAX_NODES", 100)
    assert "more than 100 values" in read("".join(f"k{i}: {i}\n" for i in range(30_000)))[1][0]
    assert scanned < 200


def test_many_problems_fit_one_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[str] = []
    monkeypatch.setattr("qplug.recipe.messages.did_you_mean", lambda word, known: sought.append(word) or "")
    found = problems_of(tmp_path, GOOD + "".join(f"k{i}: {i}\n" for i in range(1_000)))
    assert len(found) == 1_000
    assert len(sought) == 200  # similar keys are not sought for all of them


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("toy.ranges", LONG),
        ("toy.ranges", "x." * 50_000),
        ("brevitas", LONG),
        ("named", LONG),
        ("bits: 4}", f"bits: 4, ? {LONG} : 1}}"),
        ("bits: 4}", f"bits: {LONG}}}"),
        ("per_tensor", LONG),
        ("toy.ranges", '"toy\\e[31m.\\u202eranges"'),
        ("bits: 4}", 'bits: 4, "\\e]0;owned\\a\\n": 1}'),
        ("brevitas", '"\\u2066brev\\x9b2J"'),
    ],
)
def test_names_are_cut_and_safe_to_print(tmp_path: Path, old: str, new: str) -> None:
    assert old in GOOD
    problems_of(tmp_path, GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    "option",
    [
        f"{LONG}=1",
        f"seed={LONG}",
        LONG,
        f"techniques.{LONG}=1",
        f"techniques.{'9' * 4000}=1",
        "a." * 50_000 + "b=1",
        "seed=" + "{a: " * 300 + "}" * 300,
        "seed=" + "[" * 300,
        "\x1b[31m=1",
        "seed=\u202e1",
        "seed='\x9b2J'",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_options_are_cut_and_safe_to_print(tmp_path: Path, option: str) -> None:
    found = problems_of(tmp_path, GOOD, option)
    assert all(problem.startswith("--set ") for problem in found)


def test_nested_options_stay_below_the_limit_of_the_validation(tmp_path: Path) -> None:
    deep = "{a: " * (MAX_DEPTH - 1) + "1" + "}" * (MAX_DEPTH - 1)
    key = ".".join("b" * MAX_DEPTH)
    (found,) = problems_of(tmp_path, GOOD, f"{key}={deep}")
    assert "unknown key 'b'" in found


def test_a_place_and_a_description_are_cut() -> None:
    place = Place(Source("x" * 5_000, ("a",)), 0, 0)
    assert len(str(place.problem("y" * 5_000, "z" * 5_000))) < 2_000
    assert len(str(InputError("there is no such file", where="\x1b" * 5_000))) < 500


def test_bytes_that_are_no_text_have_a_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes("version: 1\nname: ü".encode() + b"\xff")
    with pytest.raises(InputError, match=r"recipe.yaml:2:8: is not UTF-8 text \(byte 19\)"):
        read_tree(path, [])
