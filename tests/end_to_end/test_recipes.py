"""Every recipe that ships: it loads, validates, round-trips, and the embedded one runs."""

from pathlib import Path

import pytest
from paths import RECIPES
from ruamel.yaml import YAML

from qplug import InputError, load_recipe
from qplug.models.detectors.build import ARCHITECTURES
from qplug.recipe.sweep import load_sweep

SWEEPS = sorted((RECIPES / "sweeps").glob("*.yaml"))
ALL = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml") if path not in SWEEPS)
IMAGENET = [name for name in ALL if name.startswith("imagenet")]
IMPORTED = ("mobilenetv1",)
"""Recipes and sweeps of a model that timm builds by a function of its own, not by name."""
COCO = [name for name in ALL if name.startswith("coco")]
DETECTORS = ("mptq_vit_table4",)
TEXTS = ("mr_biq_table_a3",)
"""Sweeps of language models, each of which has a folder and data of its own."""


@pytest.mark.parametrize("name", ALL)
def test_it_validates_and_survives_a_round_trip(name, tmp_path):
    recipe = load_recipe(RECIPES / name)
    again = tmp_path / "recipe.yaml"
    with again.open("w") as stream:
        YAML(typ="safe").dump(recipe.dump(), stream)
    assert load_recipe(again) == recipe


@pytest.mark.parametrize("name", ALL)
def test_it_says_its_protocol(name):
    comment = " ".join(line.lstrip("# ") for line in (RECIPES / name).read_text().splitlines() if line.startswith("#"))
    assert "Protocol:" in comment
    examples = "calibration examples" if name.startswith("nlp") else "calibration images"
    for word in (examples, "linear", "matmul", "Softmax", "LayerNorm"):
        assert word in comment


@pytest.mark.parametrize("name", [name for name in IMAGENET if Path(name).stem not in IMPORTED])
def test_it_can_be_pointed_at_other_models_and_folders(name):
    recipe = load_recipe(
        RECIPES / name,
        [
            "model.name=swin_tiny_patch4_window7_224",
            "model.checkpoint_path=null",
            "model.pretrained=true",
            "data.calibration.path=/calib",
            "data.evaluation.path=/val",
            "data.calibration.class_map=/map.txt",
            "data.evaluation.class_map=/map.txt",
        ],
    )
    assert recipe.model.name == "swin_tiny_patch4_window7_224"
    assert recipe.model.pretrained
    assert recipe.data.calibration.class_map == recipe.data.evaluation.class_map == "/map.txt"


LANGUAGE = [name for name in ALL if name.startswith("nlp")]


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE)
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("task", ["sequence_classification", "question_answering"])
def test_it_runs_on_other_models_tasks_and_texts(name, kind, task, small_language):
    """As its first lines say, with few iterations."""
    from qplug import run

    texts = str(small_language / "texts")
    settings = [f"model.path={small_language / f'{kind}-{task}'}", f"model.task={task}", "model.max_length=16"]
    columns = {"text_column": "text", "pair_column": "null"}
    if task == "question_answering":
        columns = {"text_column": "word", "pair_column": "text", "answer_column": "answers"}
    for data in ("data.calibration", "data.evaluation"):
        settings += [f"{data}.path={texts}", *(f"{data}.{key}={value}" for key, value in columns.items())]
    settings += ["data.calibration.examples=12", "data.evaluation.split=test", "techniques.0.iterations=2"]
    result = run(load_recipe(RECIPES / name, settings))
    assert result.metrics["coverage.macs"] == 1.0
    heads = {"sequence_classification": "model.classifier.weight", "question_answering": "model.qa_outputs.weight"}
    bits = {decision.site.name: decision.quantizer.bits for decision in result.plan if decision.site.kind.is_weight}
    assert [site for site, width in bits.items() if width == 8] == [heads[task]]
    assert set(bits.values()) == {2, 8}


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_folders_that_it_ships_with_are_refused_by_name(name):
    from qplug.hooks.registry import installed

    recipe = load_recipe(RECIPES / name)
    with pytest.raises(InputError, match="path/to/"):
        installed().models["transformers"](recipe.model).load()
    with pytest.raises(InputError, match="path/to/"):
        installed().datasets["text"](recipe.data.calibration).open(seed=0)


@pytest.mark.parametrize("name", COCO)
def test_detectors_are_exchanged_and_their_paths_refused_by_name(name):
    from qplug.hooks.registry import component, installed

    recipe = load_recipe(RECIPES / name, ["model.name=cascade_mask_rcnn_swin_t"])
    assert len(recipe.paper.published) == 8
    assert {one.model for one in recipe.paper.published} <= set(ARCHITECTURES)
    with pytest.raises(InputError, match="path/to/"):
        component(installed().datasets, recipe.data.calibration).open(seed=0)
    with pytest.raises(InputError, match="path/to/"):
        component(installed().models, recipe.model).key()


def test_the_sweep_of_detectors_has_the_table_but_apq_vit():
    _, recipes = load_sweep(RECIPES / "sweeps" / "mptq_vit_table4.yaml", seeds=[0])
    methods = ["PTQ4ViT", "TSPTQ-ViT", "MPTQ-ViT"]
    assert [(r.name, r.quantize.weights.bits) for r in recipes] == [(name, b) for b in (6, 4) for name in methods]
    assert {r.data.calibration.images for r in recipes} == {1}
    published = {(r.name, r.quantize.weights.bits): r.paper.published for r in recipes}
    by_hand = {("PTQ4ViT", 4): 26.6, ("TSPTQ-ViT", 6): 43.2, ("MPTQ-ViT", 4): 42.7}
    for (name, bits), ap in by_hand.items():
        rows = [p.top1 for p in published[name, bits] if (p.model, p.weights) == ("mask_rcnn_swin_s", bits)]
        assert rows == [ap]


@pytest.mark.parametrize("name", IMAGENET)
def test_the_paths_that_it_ships_with_are_refused_by_name(name):
    from qplug.hooks.registry import component, installed

    recipe = load_recipe(RECIPES / name)
    with pytest.raises(InputError, match="path/to/"):
        component(installed().models, recipe.model).load()
    with pytest.raises(InputError, match="path/to/"):
        installed().datasets["folder"](recipe.data.calibration).open(seed=0)


@pytest.mark.parametrize("path", [path for path in SWEEPS if path.stem not in TEXTS], ids=lambda path: path.stem)
def test_every_sweep_is_a_table_that_can_be_run(path):
    key, value = ("target", "timm:create_model") if path.stem in IMPORTED else ("name", "vit_tiny_patch16_224")
    if path.stem in DETECTORS:
        value = "cascade_mask_rcnn_swin_s"
    if path.stem.startswith(("qmlp", "mptq_vit_shapes")):  # of the zoo's models, which have their names in the recipes
        key, value = "checkpoint_path", "somewhere.safetensors"
    title, recipes = load_sweep(path, [f"model.{key}={value}"])
    assert title
    assert {recipe.seed for recipe in recipes} == {0, 1, 2}
    assert {getattr(recipe.model, key) for recipe in recipes} == {value}
    rows = {(recipe.name, recipe.model.model_dump_json(), recipe.quantize.model_dump_json()) for recipe in recipes}
    assert len(rows) == len(recipes) / 3
    assert all(recipe.paper for recipe in recipes)


def test_the_table_of_language_models_has_each_task_of_each_model():
    _, recipes = load_sweep(RECIPES / "sweeps" / "mr_biq_table_a3.yaml", seeds=[0])
    rows = [(r.model.path, r.data.evaluation.split, r.techniques[0].batch_size, r.model.max_length) for r in recipes]
    expected = []
    for kind, batch in (("bert", 12), ("distilbert", 8)):
        expected += [
            (f"models/{kind}-squad", "validation", batch, 384),
            (f"models/{kind}-mrpc", "validation", batch, 128),
        ]
        splits = ("validation_matched", "validation_mismatched")
        expected += [(f"models/{kind}-mnli", split, batch, 128) for split in splits]
    assert rows == expected
    assert [r.data.calibration.examples for r in recipes] == [3377, None, 10000, 10000] * 2
    answers = [r.data.evaluation.answer_column for r in recipes]
    assert answers == ["answers", None, None, None] * 2
    assert all((r.quantize.weights.bits, r.quantize.activations.bits) == (2, 8) for r in recipes)


def test_the_tables_of_q_mlp_say_what_the_paper_prints():
    """Which rows rewrite, which train, and at which bits; nothing but that and the grids differs within a table."""
    found = {}
    for path in SWEEPS:
        if path.stem.startswith("qmlp"):
            _, recipes = load_sweep(path, seeds=[0])
            found[int(path.stem[-1])] = recipes
            models = {(r.model.name, r.finetune.model_dump_json()) for r in recipes}
            assert len(models) == (3 if path.stem == "qmlp_table6" else 1)
    bits = {n: [f"W{r.quantize.weights.bits}A{r.quantize.activations.bits}" for r in rows] for n, rows in found.items()}
    assert bits == {
        2: ["W8A8"] * 4 + ["W4A8"],
        3: ["W8A8"] * 4 + ["W4A8"] * 2,
        4: ["W8A8"] * 2,
        5: ["W8A8"] * 2 + ["W4A8"] * 2 + ["W3A8"],
        6: ["W8A8"] * 6,
        7: ["W8A8"] * 8,
    }
    trained = {n: "".join("q" if r.qat else "p" for r in rows) for n, rows in found.items()}
    assert trained == {2: "ppqqq", 3: "ppqqqq", 4: "pp", 5: "ppqqq", 6: "p" * 6, 7: "p" * 8}
    symmetric = {n: "".join("as"[r.quantize.activations.symmetric] for r in rows) for n, rows in found.items()}
    assert symmetric == {2: "sssss", 3: "ssaaaa", 4: "ss", 5: "sssss", 6: "sa" * 3, 7: "ssaassaa"}
    rewritten = {n: "".join("-r"[len(r.techniques) > 1] for r in rows) for n, rows in found.items()}
    assert rewritten == {2: "-r-rr", 3: "-r-r-r", 4: "--", 5: "-r-rr", 6: "-" * 6, 7: "----rrrr"}
    ranges = {n: "".join(r.techniques[-1].use.split(".")[1][0] for r in rows) for n, rows in found.items()}
    assert ranges == {2: "eeeee", 3: "eeeeee", 4: "ep", 5: "eeeee", 6: "eeeeee", 7: "epepepep"}


def test_the_sweep_of_mobilenet_has_every_method_at_both_widths():
    _, recipes = load_sweep(RECIPES / "sweeps" / "mobilenetv1.yaml", seeds=[0])
    methods = ["Round to nearest", "AdaRound", "BRECQ", "BRECQ-B", "Mr.BiQ-U", "Mr.BiQ"]
    assert [(r.name, r.quantize.weights.bits) for r in recipes] == [(name, b) for b in (4, 2) for name in methods]
    assert {(r.quantize.activations.bits, r.quantize.overrides[0].bits) for r in recipes} == {(8, 8)}
    steps = {(r.name, tuple(step.use for step in r.techniques)) for r in recipes}
    assert len(steps) == len(methods)
    assert [r.techniques[0].weight for r in recipes if len(r.techniques) > 1] == [0.7] * 10


def test_published_figures_are_those_of_the_papers_table():
    """Three of each table, copied by hand from the print."""
    expected = {
        ("tsptq_vit", "deit_tiny_patch16_224", 4): 48.36,
        ("tsptq_vit", "swin_base_patch4_window7_224", 6): 84.16,
        ("mptq_vit_w4a4", "vit_large_patch16_224", 4): 80.07,
        ("mptq_vit_w6a6", "deit_tiny_patch16_224", 6): 71.03,
        ("smoothquant", "deit_small_patch16_224", 4): 64.22,
        ("sq_b", "swin_base_patch4_window7_224", 4): 75.44,
        ("tsptq_vit_full", "deit_tiny_patch16_224", 5): 26.08,
        ("greedy_mp_full", "vit_base_patch16_224", 5): 79.66,
        ("mptq_vit_full", "swin_tiny_patch4_window7_224", 6): 73.08,
        ("outlier_suppression_plus", "vit_large_patch16_224", 4): 76.37,
        ("fc1_sq_b", "deit_base_patch16_224", 4): 64.53,
        ("fc1_outlier_suppression_plus", "deit_base_patch16_224", 6): 81.54,
    }
    for (name, model, bits), top1 in expected.items():
        published = load_recipe(RECIPES / "imagenet" / f"{name}.yaml").paper.published
        assert [p.top1 for p in published if (p.model, p.activations) == (model, bits)] == [top1], name


@pytest.mark.slow
def test_training_makes_up_for_three_bits():
    from qplug import run

    plain = run(load_recipe(RECIPES / "qat.yaml", ["qat=null"])).metrics
    trained = run(load_recipe(RECIPES / "qat.yaml", ["qat.epochs=4"])).metrics
    assert trained["quantized.top1"] > plain["quantized.top1"] + 0.15  # 0.96 against 0.74
    assert trained["quantized.logit_sqnr_db"] > plain["quantized.logit_sqnr_db"] + 4.0


@pytest.mark.slow
def test_the_embedded_recipe_runs(tmp_path):
    from qplug import run

    result = run(load_recipe(RECIPES / "mptq_vit.yaml"), out=tmp_path / "run")
    metrics = result.metrics
    assert metrics["float.top1"] >= 0.96
    assert metrics["coverage.macs"] == pytest.approx(1.0)
    assert 3.5 <= metrics["bits.weights_mean"] <= 4.5
    assert 3.5 <= metrics["bits.activations_mean"] <= 4.5
    assert metrics["quantized.agreement"] > 0.5
    assert (tmp_path / "run" / "metrics.json").is_file()
