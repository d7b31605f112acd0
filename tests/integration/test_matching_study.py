"""The study of how regions are matched: its runs go from the recipe to the measures, its tests say
what the seeds can show.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, load_dataset
from datasets import Image as ImageFeature
from PIL import Image
from scipy.stats import ttest_1samp
from studies.matching import VARIANTS, run
from studies.matching_table import (
    DECISION,
    SCREENING,
    compare,
    detectable_difference,
    holm,
    table,
)
from studies.reproduction import recipe_words
from tests.support.paths import FASHION_MNIST

from esvit_hf.figures.training_curves import read_metrics
from esvit_hf.pretraining.recipe_reading import read_recipe

FIELDS = [
    "--model.config.embed_dim",
    "8",
    "--model.config.num_heads",
    "[1, 2]",
    "--heads.num_prototypes",
    "16",
    "--run.batch_size",
    "16",
    "--run.logging_steps",
    "1",
    "--schedule.max_steps",
    "2",
]


def write_splits(folder: Path, rows: Dataset) -> str:
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def masked_images() -> Dataset:
    masks = [np.tile(np.arange(40) >= border, (32, 1)).astype(np.uint8) for border in (8, 16, 24)]
    masks[0][:4] = 11
    rows = {
        "image": [Image.fromarray(mask * 200).convert("RGB") for mask in masks],
        "mask": [Image.fromarray(mask) for mask in masks],
    }
    return Dataset.from_dict(rows, features=Features(image=ImageFeature(), mask=ImageFeature()))


@pytest.mark.filterwarnings("ignore:the best learning rate")
@pytest.mark.filterwarnings("ignore:.*test images are training images")
def test_a_run_is_trained_once_and_measured_twice(tmp_path, capsys):
    images = load_dataset(str(FASHION_MNIST), split="train[:96]")
    dataset = write_splits(tmp_path / "images", images)
    dense = write_splits(tmp_path / "masked", masked_images())
    output = tmp_path / "runs"
    for decide in (False, True):
        run(
            dataset,
            dense,
            variants=["position, falling"],
            seeds=[3],
            decide=decide,
            output=output,
            fields=FIELDS,
        )
    folder = output / "position,_falling-seed3"
    screening, decision = (
        json.loads((folder / name).read_text()) for name in (SCREENING, DECISION)
    )
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert lines[0]["region_weight"] == 0.5 > lines[1]["region_weight"]
    assert screening["steps"] == decision["steps"] == 2
    for name in ("knn", "linear", "crops", "mirror", "miou_retrieval", "miou_linear"):
        assert 0 <= screening[name] <= 100 and 0 <= decision[name] <= 100
    table(output, tmp_path / "tables")
    report = json.loads((tmp_path / "tables" / "matching.json").read_text())
    assert [report[name][0]["variant"] for name in ("screening", "decision")] == [
        "position, falling"
    ] * 2
    assert "| position, falling | 1 |" in capsys.readouterr().out

    # From the JSON alone, without the folders.
    table(tmp_path / "elsewhere", tmp_path / "tables")
    assert json.loads((tmp_path / "tables" / "matching.json").read_text()) == report


def test_every_variant_is_a_recipe(tmp_path):
    for variant in VARIANTS.values():
        recipe = read_recipe(recipe_words(variant, "images", "validation", 0, tmp_path, []))
        assert sum(each.weight for each in recipe.objectives.values()) == 1
    with pytest.raises(ValueError, match=r"no variant W: choose from V, V\+R"):
        run("images", "masked", variants=["W"], output=tmp_path)


def test_p_is_corrected_for_the_number_of_tests():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]


def test_the_difference_that_seeds_show_is_shown_in_four_of_five_studies():
    generator = np.random.default_rng(0)
    for seeds, tests in ((3, 1), (5, 1), (5, 3), (8, 3)):
        shift = detectable_difference(seeds, tests)
        studies = generator.normal(shift, 1, (4000, seeds))
        shown = ttest_1samp(studies, 0, axis=1).pvalue < 0.05 / tests
        assert shown.mean() == pytest.approx(0.8, abs=0.03)


def test_variants_are_compared_seed_by_seed():
    def measured(variant, seed, knn):
        return {"variant": variant, "seed": seed, "knn": knn, "linear": knn, "miou_retrieval": 5.0}

    results = [
        measured("V", 0, 20.0),
        measured("V", 1, 22.0),
        measured("V", 2, 90.0),
        measured("V", 3, 21.0),
        measured("W", 1, 25.0),
        measured("W", 3, 23.0),
        measured("W", 0, 21.0),
    ]
    tests = {test["measure"]: test for test in compare(results, "V", "W")}
    assert tests["knn"]["seeds"] == [0, 1, 3] and tests["knn"]["differences"] == [1.0, 3.0, 2.0]
    assert tests["knn"]["p"] == pytest.approx(ttest_1samp([1.0, 3.0, 2.0], 0).pvalue)
    assert tests["knn"]["low"] < 0 < tests["knn"]["high"]
    # Two differences may be equal by chance, and then p is 0.
    assert compare(results[:6], "V", "W") == []


def test_another_network_or_batch_is_compared_with_its_own_view_loss(tmp_path):
    decision = [
        {"variant": variant, "seed": seed, "knn": top1, "linear": top1, "miou_retrieval": top1}
        for variant, values in {
            "V": (40.0, 41.0, 43.0),
            "CvT V": (20.0, 21.0, 23.0),
            "CvT position": (22.0, 24.0, 25.0),
            "small batches ViL V": (30.0, 31.0, 33.0),
            "small batches ViL position": (35.0, 38.0, 38.0),
        }.items()
        for seed, top1 in enumerate(values)
    ]
    (tmp_path / "matching.json").write_text(json.dumps({"screening": [], "decision": decision}))
    table(tmp_path / "no_runs", tmp_path)
    tests = json.loads((tmp_path / "matching.json").read_text())["paired_tests"]
    assert {(test["first"], test["second"]): test["differences"] for test in tests} == {
        ("CvT V", "CvT position"): [2.0, 3.0, 2.0],
        ("small batches ViL V", "small batches ViL position"): [5.0, 7.0, 5.0],
    }
