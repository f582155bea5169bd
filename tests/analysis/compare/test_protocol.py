"""The protocol in words, and its differences from a paper's protocol."""

from __future__ import annotations

from run_toys import resolved, write_run

from qplug.analysis.compare import group
from qplug.analysis.compare.protocol import paper_figure, protocol
from qplug.core.storage.hashing import content_key
from qplug.pipeline.read_run import read_run


def test_protocol(tmp_path):
    assert protocol(read_run(write_run(tmp_path / "one", **{"coverage.macs": 0.75}))) == {
        "weights": "per channel, symmetric",
        "activations": "per tensor, symmetric",
        "exceptions": "patch* 8 bits",
        "Softmax inputs": "float",
        "LayerNorm inputs": "float",
        "MACs in float": "25.0 %",
        "importance": "kl",
        "calibration images": "32",
        "calibration data": f"digits, {content_key(images=[])[:8]} at seed 0",
        "evaluation images": "40",
        "backend": "brevitas",
        "computed by": "cpu",
    }


def test_trained_rows_say_so(tmp_path):
    qat = {"epochs": 12, "batch_size": 64, "optimizer": "adamw", "learning_rate": 2e-5, "distill": None, "ema": 0.99}
    run = read_run(
        write_run(
            tmp_path / "one",
            resolved(qat=qat, finetune=None, data={"training": {"source": "digits"}}),
            **{"qat.images": 1100},
        )
    )
    assert protocol(run)["QAT"] == "12 epochs of 1100 images in batches of 64, adamw at 2e-05, averaged"
    assert "fine-tuned" not in protocol(run)


def test_a_float_zero_point_is_part_of_the_protocol(tmp_path):
    recipe = resolved()
    recipe["quantize"]["activations"] |= {"symmetric": False, "zero_point": "float"}
    said = protocol(read_run(write_run(tmp_path / "one", recipe)))
    assert said["activations"] == "per tensor, asymmetric with a float zero point"


def figure(tmp_path, **more):
    published = [{"model": "deit_tiny", "weights": 4, "activations": 4, "top1": 55.62, "float_top1": 72.18}]
    paper = {"title": "A paper, Table 1", "protocol": {"evaluation images": 50000, "calibration images": 32}}
    run = write_run(tmp_path / "one", resolved(paper={**paper, "published": published}, **more))
    return paper_figure(group([read_run(run)])[0].rows[0])


def test_a_published_figure_belongs_to_its_model_and_bits(tmp_path):
    found = figure(tmp_path)
    assert (found.title, found.top1, found.float_top1) == ("A paper, Table 1", 55.62, 72.18)
    assert found.differences == {"evaluation images": ("50000", "40")}


def test_of_several_figures_the_nearest_is_the_one(tmp_path):
    published = [
        {"model": "deit_tiny", "weights": w, "activations": 4, "top1": 50 + w, "float_top1": 72.18} for w in (4, 4.5)
    ]
    paper = {"title": "A paper", "protocol": {}, "published": published}
    run = write_run(tmp_path / "one", resolved(paper=paper), **{"bits.weights_mean": 4.4})
    assert paper_figure(group([read_run(run)])[0].rows[0]).top1 == 54.5


def test_of_other_bits_or_models_nothing_is_published(tmp_path):
    assert figure(tmp_path, bits=6).top1 is None
    assert figure(tmp_path / "other", model={"source": "timm", "name": "vit_tiny"}).top1 is None


def test_a_recipe_without_a_paper_has_no_figure(tmp_path):
    assert paper_figure(group([read_run(write_run(tmp_path / "one"))])[0].rows[0]) is None


def test_what_differs_is_in_the_protocol(tmp_path):
    """Number formats, blocks, dynamic ranges, other calibration data, another torch and another processor."""
    base = protocol(read_run(write_run(tmp_path / "base")))

    def differs(name, recipe=None, **more):
        run = protocol(read_run(write_run(tmp_path / name, recipe, **more)))
        return {key: run[key] for key in run if run[key] != base[key]}

    numbers = {"numbers": {"weights": "mine.mx, scales in blocks", "activations": "mine.mx, dynamic ranges"}}
    assert differs("blocks", lock=numbers) == {
        "weights": "per channel, symmetric, mine.mx, scales in blocks",
        "activations": "per tensor, symmetric, mine.mx, dynamic ranges",
    }
    noise = resolved(data={"calibration": {"source": "noise"}})
    assert list(differs("noise", noise)) == ["calibration data"]
    hashes = {"model": "m", "evaluation_images": "e", "calibration_images": ["other"]}
    assert list(differs("images", lock={"hashes": hashes})) == ["calibration data"]
    machine = {"machine": {"device": "cuda:1", "device_name": "H200"}, "packages": {"torch": "2.9"}}
    assert differs("machine", lock=machine) == {"computed by": "torch 2.9 cuda H200"}
    instructions = {"machine": {"device": "cpu", "instructions": "AVX2"}}
    assert differs("avx2", lock=instructions) == {"computed by": "cpu AVX2"}
    wide = resolved()
    wide["quantize"]["overrides"][0] |= {"granularity": "per_head"}
    assert list(differs("override", wide)) == ["exceptions"]
