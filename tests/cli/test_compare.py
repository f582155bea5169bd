"""``qplug compare`` on the command line: tables, filters, formats and errors."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_toys import TEXT, decision, relocked, resolved, write_run

from qplug.cli import main


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three recipes; a and b are ties, and c is worse."""
    right = np.arange(60) < 50
    published = [{"model": "deit_tiny", "weights": 4, "activations": 4, "top1": 55.62, "float_top1": 72.18}]
    paper = {"title": "Table 1", "protocol": {"evaluation images": 50000}, "published": published}
    write_run(tmp_path / "runs" / "c", resolved("c", bits=3), right & (np.arange(60) >= 20), size_mb=2.0)
    write_run(tmp_path / "runs" / "a", resolved("a", paper=paper), right, decisions=[decision("x")])
    write_run(tmp_path / "runs" / "b", resolved("b"), right & (np.arange(60) >= 3), decisions=[decision("x", 6)])
    return tmp_path / "runs"


def qplug(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["compare", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def names(text: str) -> list[str]:
    return [row["name"] for row in json.loads(text)["rows"]]


def test_the_table(capsys, runs):
    code, out, _ = qplug(capsys, runs)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "deit_tiny: 60 images, float top-1 80.0 %"
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["float", "W32A32"],
        ["a", "W4A4"],
        ["b", "W4A4"],
        ["c", "W3A3"],
    ]
    at = lines[1].index("same as")
    assert [line[at : at + 7].strip() for line in lines[3:6]] == ["a", "a", ""]  # c differs from both
    assert "rows with the same letter do not differ significantly (5 %)" in out
    assert "one seed only (0); --seeds 0,1,2 shows the spread" in out
    assert "A: weights per channel, symmetric" in out


def test_a_float_model_at_chance_is_marked(capsys, tmp_path):
    write_run(tmp_path / "run", **{"float.top1": 0.125, "float.chance": 0.2})
    _, out, _ = qplug(capsys, tmp_path)
    assert out.splitlines()[0] == "deit_tiny: 40 images, float top-1 12.5 %, NO BETTER THAN CHANCE"


def test_rows_with_different_seeds_are_noted(capsys, runs):
    write_run(runs / "a1", resolved("a", seed=1), np.arange(60) < 49, decisions=[decision("x")])
    write_run(runs / "b1", resolved("b", seed=1), np.arange(60) < 49, decisions=[decision("x")])
    _, out, _ = qplug(capsys, runs)
    assert "rows with different seeds (a, b: 0, 1; c: 0); ± is the standard deviation" in out


def test_a_fine_tuned_float_model_has_a_column(capsys, runs):
    assert "fine-tuned" not in qplug(capsys, runs)[1]
    for seed, top1 in ((0, 0.75), (1, 0.85)):
        write_run(runs / f"t{seed}", resolved("t", seed=seed), np.arange(60) < 30, **{"finetuned.top1": top1})
    write_run(runs / "u", resolved("u"), np.arange(60) < 30)
    table = qplug(capsys, runs, "--where", "name=[tu]", "--sort", "name")[1].splitlines()
    at = table[1].index("fine-tuned")
    assert [line[at - 3 : at + 10].strip() for line in table[3:5]] == ["80.0 % ±7.1", "–"]
    rows = json.loads(qplug(capsys, runs, "--json", "--sort", "finetuned_top1")[1])["rows"]
    assert (rows[0]["name"], rows[0]["finetuned_top1"], rows[1]["finetuned_top1"]) == ("t", 0.8, None)


def test_every_protocol_has_a_letter_of_its_own(capsys, tmp_path):
    for number in range(28):
        write_run(tmp_path / f"{number:02}", resolved(f"r{number:02}", backend=f"b{number}"), images=2)
    _, out, _ = qplug(capsys, tmp_path, "--sort", "none")
    assert [line.split()[2] for line in out.splitlines()[3:31]][24:] == ["Y", "Z", "(27)", "(28)"]
    assert sum("backend b" in line for line in out.splitlines()) == 28


def test_sorted_and_filtered(capsys, runs):
    assert names(qplug(capsys, runs, "--json")[1]) == ["a", "b", "c"]
    assert names(qplug(capsys, runs, "--json", "--sort", "size_mb")[1])[0] == "c"
    assert names(qplug(capsys, runs, "--json", "--sort", "name")[1]) == ["a", "b", "c"]
    assert names(qplug(capsys, runs, "--json", "--sort", "none")[1]) == ["a", "b", "c"]  # as the folders are named
    assert names(qplug(capsys, runs, "--json", "--where", "top1>=0.6")[1]) == ["a", "b"]
    assert names(qplug(capsys, runs, "--json", "--where", "name!=[ab]")[1]) == ["c"]
    assert names(qplug(capsys, runs, "--json", "--where", "top1<0.8", "--where", "bits_weights=4")[1]) == ["b"]
    assert names(qplug(capsys, runs, "--json", "--where", "published_top1>0.5")[1]) == ["a"]  # b and c have none
    assert names(qplug(capsys, runs, "--json", "--where", "name!=x>=y")[1]) == ["a", "b", "c"]
    assert names(qplug(capsys, runs, "--json", "--sort", "published_top1")[1])[0] == "a"


def test_other_forms_hold_the_same_rows(capsys, runs):
    rows = json.loads(qplug(capsys, runs, "--json")[1])["rows"]
    table = list(csv.DictReader(io.StringIO(qplug(capsys, runs, "--csv")[1])))
    assert [row["name"] for row in table] == [row["name"] for row in rows]
    assert [float(row["top1"]) for row in table] == [row["top1"] for row in rows]
    assert not {"letter"} & rows[0].keys()  # that of a table, which depends on the other rows
    assert (rows[0]["paper"], rows[0]["published_top1"], rows[1]["paper"]) == ("Table 1", 0.5562, None)
    assert rows[0]["protocol_differences"] == {"evaluation images": ["50000", "60"]}
    assert "| a | W4A4 | A |" in qplug(capsys, runs, "--markdown")[1]
    assert "<td>a</td>" in qplug(capsys, runs, "--html")[1]


def test_published_figures(capsys, runs):
    _, out, _ = qplug(capsys, runs, "--paper")
    row = next(line for line in out.splitlines() if line.startswith("a ") and "Table 1" in line)
    assert row.split()[-4:] == ["55.62", "16.56", "83.3", "-3.3"]
    assert "a, deit_tiny: evaluation images: paper 50000, here 60" in out
    assert "names no paper" in out
    _, out, _ = qplug(capsys, runs, "--paper", "--where", "name=a")
    assert "names no paper" not in out


def test_a_paper_that_does_not_print_its_float_top1(capsys, tmp_path):
    published = [{"model": "deit_tiny", "weights": 4, "activations": 4, "top1": 55.62, "float_top1": None}]
    write_run(tmp_path / "a", resolved("a", paper={"title": "Table 1", "protocol": {}, "published": published}))
    code, out, _ = qplug(capsys, tmp_path / "a", "--paper")
    (line,) = [line for line in out.splitlines() if "55.62" in line]
    assert code == 0
    assert line.split()[-4:] == ["55.62", "–", "50.0", "30.0"]


def test_float_costs_are_empty_if_rewriting_changed_them(capsys, tmp_path):
    for name, size in (("a", 22.9), ("b", 30.1)):
        write_run(tmp_path / name, resolved(name), **{"float.size_mb": size})
    _, out, _ = qplug(capsys, tmp_path, "--json")
    _, out, _ = qplug(capsys, tmp_path)
    (line,) = [line for line in out.splitlines() if "W32A32" in line]
    assert "22.9" not in line
    assert "30.1" not in line
    assert "1290" in line  # on which both agree


def test_plans_side_by_side(capsys, runs):
    _, out, _ = qplug(capsys, "--diff", runs / "a", runs / "b")
    assert "A and B: 1 of 1 sites differ" in out
    assert out.index(f"A: {runs / 'a'}") < out.index(f"B: {runs / 'b'}")
    assert "uniform 6 bits by toy.minmax" in out
    found = json.loads(qplug(capsys, "--json", "--diff", runs / "a", runs / "b")[1])
    assert found["differences"][0]["what"] == ["bits"]
    assert found["notes"] == []
    assert "both plans are the same" in qplug(capsys, "--diff", runs / "a", runs / "a")[1]


def test_plans_side_by_side_in_every_form(capsys, runs):
    sides = ("--diff", runs / "a", runs / "b")
    (row,) = csv.DictReader(io.StringIO(qplug(capsys, *sides, "--csv")[1]))
    assert (row["site"], row["ours"]) == ("x", "uniform 4 bits by toy.minmax, min-max")
    assert "| site | differs in | A | B | scale A/B |" in qplug(capsys, *sides, "--markdown")[1]
    assert "<td>uniform 6 bits by toy.minmax, min-max</td>" in qplug(capsys, *sides, "--html")[1]


def test_plans_of_other_models_and_after_other_changes_say_so(capsys, runs):
    change = {"where": "norm", "technique": "toy.smooth", "preserves": True, "reason": ""}
    write_run(runs / "d", resolved("d"), decisions=[decision("x")], model="other", changes=[change] * 2)
    notes = json.loads(qplug(capsys, "--json", "--diff", runs / "a", runs / "d")[1])["notes"]
    assert notes == [
        "the float models differ; scales may differ for this reason alone",
        "changes before quantization: A none; B toy.smooth × 2",
    ]


@pytest.mark.slow
def test_a_recipe_and_a_run_are_compared_in_the_order_in_which_they_are_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("minmax.yaml").write_text(TEXT)
    assert qplug(capsys, "minmax.yaml", "--no-cache")[0] == 0
    (run,) = Path("runs").iterdir()
    shutil.copytree(run, "elsewhere")
    plan = json.loads(Path("elsewhere/plan.json").read_text())
    plan["decisions"][0]["technique"] = "edited"
    Path("elsewhere/plan.json").write_text(json.dumps(plan))
    relocked(Path("elsewhere"))
    (found,) = json.loads(qplug(capsys, "--json", "--diff", "minmax.yaml", "elsewhere")[1])["differences"]
    assert ("edited" in found["ours"], "edited" in found["theirs"]) == (False, True)


@pytest.mark.slow
def test_a_sweep_sets_title_and_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("minmax.yaml").write_text(TEXT)
    rows = "[{recipe: minmax.yaml, name: b}, {recipe: minmax.yaml, name: a, set: {quantize.weights.bits: 6}}]"
    Path("sweep.yaml").write_text(f"version: 1\ntitle: Table 9\nrecipes: {rows}\n")
    _, out, err = qplug(capsys, "sweep.yaml", "--seeds", "3,4", "--no-cache")
    assert out.splitlines()[0] == "Table 9"
    assert [line.split()[0] for line in out.splitlines()[4:7]] == ["float", "b", "a"]
    assert "mean over the seeds 3, 4; ± is the standard deviation" in out
    assert "only a difference of 9 times its own standard deviation is significant" in " ".join(out.split())
    assert "4 runs: 0 finished, 4 to run" in err
    found = json.loads(qplug(capsys, "sweep.yaml", "--seeds", "3,4", "--json", "--no-cache")[1])
    assert (found["titles"], [row["seeds"] for row in found["rows"]]) == (["Table 9"], [[3, 4], [3, 4]])


def test_names_are_no_markup_and_break_no_table(capsys, runs, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "400")
    write_run(runs / "[red]", resolved("[/b] a/b | c\nd"), decisions=[decision("[/x]")])
    assert "[/b] a/b | c" in qplug(capsys, runs / "[red]")[1].replace("\n", " ")
    assert "[red]" in qplug(capsys, "--diff", runs / "[red]", runs / "b")[1].replace("\n", " ")
    (line,) = (
        line for line in qplug(capsys, runs / "[red]", "--markdown")[1].splitlines() if line.startswith(r"| \[/b]")
    )
    assert line.startswith(r"| \[/b] a/b \| c\\nd | W4A4 |")


def test_unreadable_folders_are_named_and_the_rest_is_compared(capsys, runs):
    (runs / "a" / "plan.json").unlink()
    (runs / "b" / "lock.json").write_text('{"format": 1, "qplug": "0.1.0"}')
    write_run(runs / "d", resolved("d"), model="other")
    write_run(runs / "e", resolved("e"), evaluation="other")
    code, out, err = qplug(capsys, runs, runs / "nowhere")
    assert code == 2
    for text in ("a: is not a whole run folder: plan.json missing", "format 5 was expected", "there is no such run"):
        assert text in err
    assert out.count("float top-1") == 3
    titles = [line.partition(",")[0] for line in out.splitlines() if "float top-1" in line]
    assert titles == [
        "deit_tiny (weights=m): 60 images (e…)",
        "deit_tiny (weights=other): 40 images",
        "deit_tiny (weights=m): 40 images (other…)",
    ]
    assert "compare only the rows of one table" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected run folders, recipes or sweeps to compare, received none"),
        (["nowhere"], "none of the runs can be read"),
        (["RUNS", "--where", "top1"], "expected KEY, one of"),
        (["RUNS", "--where", "topp1>0"], "did you mean 'top1'"),
        (["RUNS", "--where", "top1>high"], "top1 is a number"),
        (["RUNS", "--where", "top1>2"], "no row matches"),
        (["RUNS", "--sort", "toop1"], "there is no key 'toop1'"),
        (["RUNS", "--json", "--csv"], "choose one of"),
        (["RUNS", "--seeds", "0"], "change recipes, and only finished runs are given"),
        (["nowhere.yaml", "--seeds", "x"], "expected whole numbers"),
        (["nowhere.yaml", "--seeds", "0,4294967296"], "up to 4294967295"),
        (["nowhere.yaml", "--seeds", "0", "--set", "seed=1"], "both set the seed"),
        (["RUNS", "--diff", "RUNS/a", "RUNS/b"], "compares its own two runs or recipes"),
        (["--diff", "RUNS", "RUNS/b"], "--diff compares two single runs, and 3 can be read here"),
        (["--diff", "RUNS/a", "RUNS/b", "--where", "name=a"], "takes no PATHS, --sort, --where or --paper"),
        (["RUNS", "--sort", "protocol"], "expected a key of a number or of text, received 'protocol'"),
        (["RUNS", "--where", "seeds=0"], "expected a key of a number or of text, received 'seeds'"),
        (["RUNS", "--where", "name<b"], "name is text and has no order"),
        (["nowhere.yaml"], "no such file"),
    ],
)
def test_wrong_arguments_are_explained(capsys, runs, arguments, message):
    code, _, err = qplug(capsys, *(argument.replace("RUNS", str(runs)) for argument in arguments))
    assert code == 2
    assert message in err


@pytest.mark.slow
def test_a_finished_run_is_read_without_torch(tmp_path):
    """The second time neither torch nor scikit-learn is imported."""
    (tmp_path / "minmax.yaml").write_text(TEXT)
    code = (
        "import sys\nfrom qplug.cli import main\n"
        "try: main(['compare', 'minmax.yaml', '--seeds', '0,1', '--json', '--no-cache'])\n"
        "finally: print([m for m in ('torch', 'sklearn', 'timm') if m in sys.modules], file=sys.stderr)"
    )
    results = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    rows = [json.loads(result.stdout)["rows"] for result in results]
    assert rows[0] == rows[1]
    assert rows[0][0]["seeds"] == [0, 1]
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert results[1].stderr.splitlines()[-1] == "[]"


def test_costs_are_counted_by_the_requested_convention(tmp_path, capsys):
    asked = {"accounting.hawq.size_mb": 1.25, "accounting.hawq.bops_g": 70.5, "accounting.hawq.float.size_mb": 21.5}
    write_run(tmp_path / "runs" / "a", resolved("a"), **asked)
    code, text, _ = qplug(capsys, tmp_path / "runs")
    assert code == 0
    assert "MB and BOPs, full: MACs × bits × bits, attention's matmuls included" in text
    _, text, _ = qplug(capsys, tmp_path / "runs", "--accounting", "hawq")
    assert "MB and BOPs, hawq: MACs × bits × bits, no matmuls of attention; MB of 2^20 bytes" in text
    assert "21.50" in text
    (row,) = json.loads(qplug(capsys, tmp_path / "runs", "--accounting", "hawq", "--json")[1])["rows"]
    assert (row["size_mb"], row["bops_g"]) == (1.25, 70.5)
    assert row["bops_convention"].startswith("hawq: ")


def test_damaged_folders_are_named_beside_the_healthy_rows(capsys, runs):
    for index, (name, text) in enumerate(
        [
            ("lock.json", '{"format": 5, "seed": 0}'),
            ("metrics.json", "{}"),
            ("metrics.json", '{"float.top1": {"a": 1}}'),
            ("metrics.json", '{"float.top1": "half"}'),
            ("recipe.yaml", "version: 1"),
            ("recipe.yaml", "a: &a [x, x]\nb: &b [*a, *a]\n"),
            ("evaluation.safetensors", ""),
        ]
    ):
        folder = write_run(runs / f"damaged{index}")
        (folder / name).write_text(text)
        if name != "lock.json":
            relocked(folder)
    code, out, err = qplug(capsys, runs)
    assert code == 2
    for index in range(7):
        assert f"damaged{index}" in err
    assert "unexpected" not in err
    assert "hashes: field required" not in out
    assert [word for word in ("a ", "b ", "c ") if f"\n{word}" in out] == ["a ", "b ", "c "]


def test_verify_names_what_differs_and_what_cannot_be_read(capsys, runs):
    (runs / "a" / "recipe.yaml").write_text("version: 1")
    with pytest.raises(SystemExit) as end:
        main(["verify", str(runs / "a")])
    out = capsys.readouterr().out
    assert end.value.code == 1
    assert "recipe.yaml is not the file that the run wrote" in " ".join(out.split())
    with pytest.raises(SystemExit) as end:
        main(["verify", str(runs / "a"), str(runs / "nowhere"), "--json"])
    shown, err = capsys.readouterr()
    assert end.value.code == 2
    assert [run["holds"] for run in json.loads(shown)["runs"]] == [False]
    assert "there is no such run folder" in err


def test_metrics_of_plugins_are_columns_and_keys(capsys, runs):
    write_run(runs / "k0", resolved("k"), images=60, **{"mine.kl": 0.25})
    write_run(runs / "k1", resolved("k", seed=1), images=60, **{"mine.kl": 0.75})
    write_run(runs / "l", resolved("l"), images=60, **{"mine.kl": 1234.5678})
    out = qplug(capsys, runs, "--sort", "mine.kl")[1].splitlines()
    start = out[1].index("mine.kl")
    at = next(index for index, line in enumerate(out) if line.startswith("l "))
    assert [line.split()[0] for line in out[at : at + 2]] == ["l", "k"]
    assert "1235" in out[at]
    assert out[at + 1][start - 4 : start + 8].strip() == "0.5 ±0.35"
    rows = json.loads(qplug(capsys, runs, "--json", "--where", "mine.kl<2")[1])["rows"]
    assert [(row["name"], row["mine.kl"]) for row in rows] == [("k", 0.5)]
    (row,) = csv.DictReader(io.StringIO(qplug(capsys, runs, "--csv", "--where", "name=l")[1]))
    assert float(row["mine.kl"]) == 1234.5678
    assert json.loads(qplug(capsys, runs, "--json", "--where", "name=a")[1])["rows"][0]["mine.kl"] is None


def test_every_row_names_its_folder(capsys, runs):
    write_run(runs / "a1", resolved("a", seed=1), images=60, decisions=[decision("x")])
    out = qplug(capsys, runs, "--sort", "name")[1].splitlines()
    assert out[1].rstrip().endswith("folder")
    assert [line.split("  ")[-1].strip() for line in out[3:6]] == ["a and 1 more", "b", "c"]
    assert json.loads(qplug(capsys, runs, "--json", "--where", "folder=b")[1])["rows"][0]["name"] == "b"


def test_folders_of_one_name_are_told_apart(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("one", "two"):
        write_run(Path(place, "a"), resolved(place))
    rows = json.loads(qplug(capsys, "one/a", "two/a", "--json", "--sort", "none")[1])["rows"]
    assert [row["folder"] for row in rows] == ["one/a", "two/a"]


def test_keys_that_a_check_knows_are_those_of_a_row(capsys, runs):
    from qplug.cli.report.comparison import example_values

    row = json.loads(qplug(capsys, runs, "--json")[1])["rows"][0]
    example = example_values([])
    assert row.keys() == example.keys()
    for key, value in row.items():
        if value is not None:
            assert isinstance(value, (list, dict)) == isinstance(example[key], list), key
            assert isinstance(value, str) == isinstance(example[key], str), key


@pytest.mark.parametrize(
    "option", [("--sort", "toop1"), ("--where", "topp1>0"), ("--where", "top1>high"), ("--where", "name<b")]
)
def test_a_wrong_key_is_refused_before_anything_is_run(capsys, tmp_path, monkeypatch, option):
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT)

    def runs_nothing(*_, **__):
        raise AssertionError("something was run")

    monkeypatch.setattr("qplug.analysis.compare.load_runs.run_all", runs_nothing)
    code, _, err = qplug(capsys, path, *option)
    assert code == 2
    assert option[0] in err


def test_small_figures_say_something(capsys, tmp_path):
    write_run(tmp_path / "runs" / "a", resolved("a"), bops_g=0.0000471, size_mb=0.00123, **{"float.bops_g": 0.047})
    out = qplug(capsys, tmp_path / "runs")[1]
    assert "4.7e-05" in out
    assert "0.0012" in out
    assert "0.047" in out
