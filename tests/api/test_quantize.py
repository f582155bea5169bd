"""``qplug.quantize`` as a program calls it: what goes in, what comes back, and what is done with it."""

import pytest
import torch
from memory_toys import Added, Keyword, One, Two, batches, images, labelled
from torch import nn

import qplug
from qplug import InputError
from qplug.export.formats.table import FORMATS

FAST = {
    "quantize": {"weights": {"bits": 8}, "activations": {"bits": 8, "symmetric": False}},
    "techniques": [{"use": "baseline.minmax"}],
}


def outputs(model, x):
    with torch.no_grad():
        return model(x)


@pytest.fixture(scope="module")
def two():
    """A result of a model with two outputs, without evaluation."""
    return qplug.quantize(Two(), batches(), FAST)


def test_a_model_with_two_outputs_comes_back_with_two(two):
    x = images()
    (classes, box), (float_classes, float_box) = outputs(two.model, x), outputs(Two().eval(), x)
    assert (classes.shape, box.shape) == ((8, 5), (8, 4))
    for found, wanted in ((classes, float_classes), (box, float_box)):
        assert not torch.equal(found, wanted)
        assert (found - wanted).norm() < 0.05 * wanted.norm()
    assert "all 9 values of its 2 tensors are compared" in " ".join(two.warnings)
    assert two.metrics["coverage.macs"] == 1.0


def test_without_evaluation_it_is_compared_on_calibration_data_and_says_so(two):
    x, wanted = images(), outputs(Two().eval(), images())
    found = outputs(two.model, x)
    signal, noise = (
        sum(float(part.double().square().sum()) for part in parts)
        for parts in (wanted, [a - b for a, b in zip(found, wanted, strict=True)])
    )
    assert two.metrics["calibration.sqnr_db"] == pytest.approx(
        10 * torch.tensor(signal / noise).log10().item(), abs=0.01
    )
    assert two.metrics["score_title"] == "agreement on calibration data"
    assert two.metrics["images.evaluation"] == 0
    assert any("compared on its calibration data alone" in warning for warning in two.warnings)


def test_a_saved_run_loads_with_the_model_and_says_so_without(two, tmp_path):
    from qplug.analysis.verify import verify

    folder = two.save(tmp_path / "run")
    again = qplug.load_quantized(folder, model=Two())
    x = images(seed=3)
    for found, wanted in zip(outputs(again, x), outputs(two.model, x), strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(
        InputError, match=r"Two was in the memory of a Python program[\s\S]*load_quantized\(FOLDER, model="
    ):
        qplug.load_quantized(folder)
    checked = verify(folder)
    assert checked.holds
    assert {check.state for check in checked.checks} == {"same", "not checked"}
    with pytest.raises(InputError, match="exists"):
        two.save(folder)
    two.save(tmp_path / "other")
    assert two.warnings.count(two.warnings[0]) == 1


def test_another_model_does_not_load(two, tmp_path):
    with pytest.raises(InputError, match=r"does not rewrite|does not fit|lacks"):
        qplug.load_quantized(two.save(tmp_path / "run"), model=nn.Sequential(nn.Flatten(), nn.Linear(768, 5)))


def test_a_model_of_a_source_takes_no_other(tmp_path):
    run = tmp_path / "run"
    recipe = qplug.load_recipe(
        "w8a8", ["data.calibration.images=8", "data.evaluation.images=8", "techniques=[{use: baseline.minmax}]"]
    )
    qplug.run(recipe, out=run)
    with pytest.raises(InputError, match="expected no model"):
        qplug.load_quantized(run, model=Two())


def test_a_report_is_text_and_a_file(two, tmp_path):
    assert repr(two).startswith("<Quantized by recipe: agreement_on_calibration 1 → ")
    assert "agreement on calibration data, quantized" in two.report()
    assert "</table>" in two.report(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!")
    assert "| linear\\_weight |" in two.report(tmp_path / "report.md")
    with pytest.raises(InputError, match=r"expected a name in \.md or \.html or \.txt"):
        two.report(tmp_path / "report.pdf")


def test_ones_own_function_measures_both_models_as_the_caller_gave_them():
    seen = []

    def evaluate(model):
        seen.append(model(pixels=images(seed=2))["logits"])
        return {"accuracy": 1.0 - 0.25 * (len(seen) - 1), "loss": torch.tensor(7.5)}

    loader = [{"pixels": x, "labels": torch.zeros(4, dtype=torch.int64)} for x in batches()]
    result = qplug.quantize(Keyword(), loader, FAST, evaluate=evaluate)
    metrics = result.metrics
    assert (metrics["float.accuracy"], metrics["quantized.accuracy"]) == (1.0, 0.75)
    assert (metrics["float.loss"], metrics["score"]) == (7.5, "accuracy")
    with torch.no_grad():
        assert torch.equal(seen[0], Keyword().eval()(pixels=images(seed=2))["logits"])
        assert torch.equal(seen[1], result.model(pixels=images(seed=2))["logits"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (0.5, "returned float for the float model, and expected are numbers by name"),
        ({}, "expected are numbers by name"),
        ({"accuracy": "high"}, "returned no number for 'accuracy' of the float model"),
        ({"accuracy": float("nan")}, "returned no number for 'accuracy'"),
        ({"size_mb": 1.0}, "a name of qplug's own"),
    ],
)
def test_what_ones_own_function_may_not_return(returned, message):
    with pytest.raises(InputError, match=message):
        qplug.quantize(One(), batches(), FAST, evaluate=lambda model: returned)


def test_ones_own_function_that_fails_does_so_before_the_work():
    def evaluate(model):
        raise ValueError("no such file")

    with pytest.raises(InputError, match="evaluate: raised for the float model: ValueError: no such file"):
        qplug.quantize(One(), batches(), FAST, evaluate=evaluate)


def test_other_names_for_the_quantized_model_are_refused():
    names = iter(["a", "b"])
    with pytest.raises(InputError, match="returned b for the quantized model, and a for the float model"):
        qplug.quantize(One(), batches(), FAST, evaluate=lambda model: {next(names): 1.0})


def test_evaluation_data_measure_top1_and_a_name_of_the_tasks_is_taken():
    result = qplug.quantize(One(), batches(), FAST, evaluation=labelled())
    assert 0 <= result.metrics["quantized.top1"] <= 1
    assert result.metrics["images.evaluation"] == 8
    with pytest.raises(InputError, match="returns 'top1', which qplug measures itself"):
        qplug.quantize(One(), batches(), FAST, evaluation=labelled(), evaluate=lambda model: {"top1": 1.0})


def test_outputs_that_are_no_classes_are_judged_as_features_without_labels():
    result = qplug.quantize(Two(), batches(), FAST, evaluation=batches(1))
    assert result.metrics["score"] == "cosine"
    assert 0.99 < result.metrics["quantized.cosine"] < 1
    assert result.metrics["images.evaluation"] == 8
    assert qplug.quantize(One(), batches(), FAST, task="features").metrics["coverage.macs"] == 1.0
    with pytest.raises(InputError, match="no task 'boxes'"):
        qplug.quantize(One(), batches(), FAST, task="boxes")
    with pytest.raises(InputError, match="expected is a tensor"):
        qplug.quantize(Two(), batches(), FAST, task="classification")


def test_several_inputs_of_one_shape_are_taken_by_name():
    x = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    loader = [{"a": x[0], "b": x[1]}]
    result = qplug.quantize(Added(), loader, FAST)
    found, wanted = result.model(a=x[0], b=x[1]), Added()(x[0], x[1])
    assert (found - wanted).norm() < 0.05 * wanted.norm()
    assert {d.site.module for d in result.plan} == {"left", "right"}


def test_calibration_labels_are_not_read():
    loader = [(x, {"boxes": None}, "more") for x in batches()]
    assert qplug.quantize(One(), loader, FAST).metrics["images.calibration"] == 8


def test_a_long_loader_is_cut_and_the_warning_says_so():
    def endless():
        while True:
            yield images(4)

    result = qplug.quantize(One(), endless(), FAST, calibration_examples=6)
    assert result.metrics["images.calibration"] == 6
    assert "calibration: the first 6 examples of the loader were taken, and it has more" in result.warnings
    assert not any("were taken" in w for w in qplug.quantize(One(), batches(), FAST, calibration_examples=8).warnings)


def test_the_default_recipe_is_w8a8_and_names_and_paths_work(tmp_path):
    assert qplug.quantize(One(), batches()).recipe.name == "w8a8"
    path = tmp_path / "own.yaml"
    path.write_text(qplug.load_recipe("w4a8").yaml())
    assert qplug.quantize(One(), batches(), path).metrics["bits.weights_mean"] == 4


def test_overrides_of_a_named_recipes_own_layers_are_left_out():
    result = qplug.quantize(One(), batches(), "deploy_int8")
    assert result.recipe.quantize.overrides == ()
    assert any(warning.startswith("left out: the override ") for warning in result.warnings)


class Dataset(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return images(1)[0], 0


def broken():
    yield images(4)
    raise OSError("disk gone")


def spent():
    generator = iter(batches())
    list(generator)
    return generator


@pytest.mark.parametrize(
    ("model", "loader", "message"),
    [
        (One(), [], "there are no examples"),
        (One(), spent(), "a generator can be read only once"),
        (One(), broken(), "calibration: the loader raised behind 1 batches: OSError: disk gone"),
        (One(), Dataset(), "received a Dataset"),
        (One(), 3, "received an int, which yields no batches"),
        (One(), [images(4), torch.randn(4, 3, 8, 8)], r"\(3, 8, 8\) float32, and those before it have \(3, 16, 16\)"),
        (One(), [images(4), images(4).double()], "float64, and those before it have"),
        (One(), [torch.randn(4)], r"expected inputs \(B, …\), received a tensor \(4\)"),
        (One(), [{"image": images(4)}], "has the keys image, and the model's forward takes x"),
        (One(), [{"x": [1, 2]}], "expected tensors, received a list for 'x'"),
        (One(), [{"x": images(4)}, images(4)], "expected tensors"),
        (Added(), [{"a": torch.zeros(2, 6), "b": torch.zeros(2, 3)}], "only if they have one shape and type"),
        (Added(), [torch.zeros(2, 6)], "needs 2 inputs: a, b"),
        ({"a": 1}, batches(), "expected a torch.nn.Module, received a value of type dict"),
    ],
)
def test_bad_input_is_one_clear_sentence(model, loader, message):
    with pytest.raises(InputError, match=message):
        qplug.quantize(model, loader, FAST)


def test_inputs_of_evaluation_must_be_of_the_same_kind():
    with pytest.raises(InputError, match="give inputs of one kind"):
        qplug.quantize(One(), batches(), FAST, evaluation=[(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))])


def test_a_model_that_returns_no_numbers_is_refused():
    class Words(One):
        def forward(self, x):
            super().forward(x)
            return ["cat"] * len(x)

    with pytest.raises(InputError, match="holds no floating-point tensor"):
        qplug.quantize(Words(), batches(), FAST)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_it_is_exported_with_the_gate_on_all_outputs(two, format, tmp_path):
    export = two.export(tmp_path / f"two{FORMATS[format].suffix}", format, images=4)
    assert export.parity is not None
    assert export.parity.first_wrong is None
    assert export.path.stat().st_size == export.size
    with pytest.raises(InputError, match="exists"):
        two.export(export.path, format)
