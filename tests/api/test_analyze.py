"""``qplug.inspect``, ``qplug.sensitivity`` and ``qplug.compare`` on models in memory."""

import pytest
from memory_toys import One, Two, batches, images, labelled

import qplug
from qplug import InputError
from qplug.cli import main


def recipe(bits):
    sides = {"weights": {"bits": bits}, "activations": {"bits": bits, "symmetric": False}}
    return {"name": f"w{bits}", "quantize": sides, "techniques": [{"use": "baseline.minmax"}]}


def test_inspect_lists_the_sites_of_a_model():
    found = qplug.inspect(Two(), images(1))
    assert found.coverage == 1.0
    assert [site.name for site in found.sites if site.kind.is_weight] == ["conv.weight", "classes.weight", "box.weight"]
    assert "all 9 values of its 2 tensors" in found.notes[0]
    assert qplug.inspect(One(), {"x": images(1)}).total_macs == found.total_macs


def test_sensitivity_measures_each_site_on_held_out_examples():
    found = qplug.sensitivity(Two(), batches(), batches(1), bits=(8, 4), ranges=["baseline.minmax"])
    assert {site.site.module for site in found.sites} == {"conv", "classes", "box"}
    assert found.images == {"calibration": 8, "evaluation": 8}
    assert all(site.sqnr_db[8] > site.sqnr_db[4] + 15 for site in found.sites if site.site.kind.is_weight)


def test_sensitivity_of_one_loader_compares_on_its_second_half():
    found = qplug.sensitivity(One(), batches(), bits=(4,), ranges=["baseline.minmax"], match=("classes",))
    assert found.images == {"calibration": 4, "evaluation": 4}
    assert "the outputs were compared on the last 4 calibration examples" in found.warnings
    with pytest.raises(InputError, match="there is one example"):
        qplug.sensitivity(One(), [images(1)])
    with pytest.raises(InputError, match=r"no technique 'baseline\.minmx'"):
        qplug.sensitivity(One(), batches(), ranges=["baseline.minmx"])
    with pytest.raises(InputError, match="bits"):
        qplug.sensitivity(One(), batches(), bits=(1,))


@pytest.fixture(scope="module")
def results():
    def evaluate(model):
        return {"negative_error": -float((model(images(seed=5)) - One().eval()(images(seed=5))).norm())}

    return [qplug.quantize(One(), batches(), recipe(bits), evaluate=evaluate) for bits in (4, 8)]


def test_results_and_folders_are_compared_by_the_callers_number(results, tmp_path):
    folder = results[0].save(tmp_path / "four")
    found = qplug.compare([folder, results[1]])
    results[0].folder = None
    assert [row["name"] for row in found.rows] == ["w8", "w4"]
    assert [row["score"] for row in found.rows] == ["negative_error"] * 2
    assert found.rows[0]["top1"] == results[1].metrics["quantized.negative_error"]
    assert found.rows[1]["folder"] == "four"
    assert [row["tie"] for row in found.rows] == ["", ""]
    assert "One: float negative_error -0" in str(found) or "One: float negative_error 0" in str(found)
    assert [row["name"] for row in qplug.compare(results, names=["a", "b"]).rows] == ["b", "a"]


def test_the_command_compares_a_saved_run(results, tmp_path, capsys):
    results[0].save(tmp_path / "four")
    results[0].folder = None
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(tmp_path / "four")])
    assert ended.value.code == 0
    assert "negative_error" in capsys.readouterr().out


def test_a_run_on_evaluation_data_has_letters():
    both = [qplug.quantize(One(), batches(), recipe(bits), evaluation=labelled()) for bits in (8, 7)]
    found = qplug.compare(both)
    assert all(row["tie"] for row in found.rows)
    assert found.rows[0]["images"] == 8


def test_what_cannot_be_compared_is_refused(results, tmp_path):
    with pytest.raises(InputError, match="received none"):
        qplug.compare([])
    with pytest.raises(InputError, match="expected 2 names, received 1"):
        qplug.compare(results, names=["a"])
    with pytest.raises(InputError, match="there is no such run folder"):
        qplug.compare([tmp_path / "none"])
