"""The comparison of the losses: its runs can be stopped and continued, its tables say what was
measured.
"""

import json
from pathlib import Path

import pytest
import torch
from scipy.stats import ttest_rel
from studies.regions import regions, split_variance
from studies.reproduction import (
    VARIANTS,
    Splits,
    Usage,
    count_operations,
    finish,
    recipe_words,
    run,
)
from studies.table import (
    COSTS,
    QUALITIES,
    format_table,
    paired_tests,
    plot_compute,
    read_results,
    table,
)
from tests.support.paths import FASHION_MNIST

from esvit_hf.figures.training_curves import read_metrics
from esvit_hf.pretraining.build import build_backbone
from esvit_hf.pretraining.loop import pretrain
from esvit_hf.pretraining.recipe_reading import read_recipe

IMAGES = str(FASHION_MNIST)
NETWORK = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 4,
}
FIELDS = {
    "data.train_split": "train[:128]",
    "model.name": "esvit_swin",
    "model.config": json.dumps(NETWORK),
    "heads.num_prototypes": 32,
    "heads.hidden_dim": 16,
    "heads.bottleneck_dim": 8,
    "run.batch_size": 32,
    "schedule.num_epochs": 2,
    "optimizer.learning_rate": 1e-4,
    "optimizer.warmup_epochs": 1,
    "data.num_workers": 0,
    "run.logging_steps": 1,
    "run.knn_every_epochs": 1,
}
TRANSFER = Splits(IMAGES, "train[:128]", "test[:64]")


def small_fields(max_steps: int) -> list[str]:
    return [
        word
        for name, value in {**FIELDS, "schedule.max_steps": max_steps}.items()
        for word in (f"--{name}", str(value))
    ]


def run_small(output: Path, variant: str, max_steps: int) -> None:
    run(
        IMAGES,
        TRANSFER.dataset,
        test_split=TRANSFER.test,
        transfer_train_split=TRANSFER.train,
        transfer_test_split=TRANSFER.test,
        variants=[variant],
        seeds=[3],
        output=output,
        fields=small_fields(max_steps),
    )


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_runs_are_continued_until_they_have_a_result(tmp_path, capsys):
    folder = tmp_path / "V-seed3"
    # As if the run had been stopped after three steps and a minute.
    words = recipe_words(VARIANTS["V"], IMAGES, TRANSFER.test, 3, folder, small_fields(3))
    pretrain(read_recipe(words))
    Usage(processor_seconds=60.0).write(folder)
    run_small(tmp_path, "V", max_steps=8)
    result = json.loads((folder / "result.json").read_text())
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line] == [
        *range(1, 9)
    ]
    assert "region_loss" not in read_metrics(folder / "metrics.jsonl")[1]
    assert result["processor_minutes"] > 1
    assert result["images_per_processor_second"] == pytest.approx(
        8 * 32 / (60 * result["processor_minutes"])
    )
    assert result["peak_mebibytes"] > 100
    assert all(0 <= result[name] <= 100 for name in QUALITIES)
    assert result["mirror_chance"] == pytest.approx(100 / 9)

    run_small(tmp_path, "random", max_steps=8)
    written = (folder / "result.json").stat().st_mtime_ns
    run_small(tmp_path, "V", max_steps=8)
    assert (folder / "result.json").stat().st_mtime_ns == written

    table(tmp_path, tmp_path / "tables")
    report = json.loads((tmp_path / "tables" / "reproduction.json").read_text())
    assert [record["variant"] for record in report["results"]] == ["V", "random"]
    assert [path.name for path in (tmp_path / "tables").glob("*.png")] == [
        "reproduction_compute.png"
    ]

    capsys.readouterr()
    regions(IMAGES, test_split="test[:64]", images=50, output=tmp_path)
    assert [line.split("|")[1] for line in capsys.readouterr().out.splitlines()[2:]] == [
        " V ",
        " random ",
    ]

    first, *others = read_results(tmp_path)
    for processor, expected in (
        (first["machine"]["processor"], {"V", "random"}),
        ("another", {"random"}),
    ):
        elsewhere = first | {"machine": {"processor": processor}}
        axes = plot_compute([elsewhere, *others, *others]).figure.axes[0]
        assert set(axes.get_legend_handles_labels()[1]) == expected

    # As if a GPU had trained it: its processor time says nothing.
    usage = json.loads((folder / "usage.json").read_text())
    (folder / "usage.json").write_text(json.dumps(usage | {"gpu": "a GPU"}))
    words = recipe_words(VARIANTS["V"], IMAGES, TRANSFER.test, 3, folder, small_fields(8))
    result = finish("V", read_recipe(words), TRANSFER)
    assert result["trained_on"] == "a GPU"
    assert [result[name] for name in COSTS] == [None] * 3
    table(tmp_path, tmp_path / "tables")


def test_unknown_variants_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no variant W: choose from V\+R, V"):
        run_small(tmp_path, "W", max_steps=1)


def test_an_output_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run"):
        read_results(tmp_path)


def test_numbers_are_paired_by_seed():
    shares = {
        ("V", 0): 20.0,
        ("V", 1): 22.0,
        ("V", 2): 21.0,
        ("V+R", 0): 23.0,
        ("V+R", 2): 25.0,
        ("V+R", 5): 90.0,
    }
    results = [
        {
            "variant": variant,
            "seed": seed,
            "machine": {"processor": "one"},
            **dict.fromkeys(QUALITIES | COSTS, share),
        }
        for (variant, seed), share in shares.items()
    ]
    line = "| V | 3 |" + " 21.0 ± 1.0 |" * 8
    assert line in format_table(results)
    results[2]["machine"] = {"processor": "another"}
    line = "| V | 3 |" + " 21.0 ± 1.0 |" * 5 + " 21.0 ± 1.4 |" * 3
    assert line in format_table(results)
    expected = ttest_rel([23.0, 25.0], [20.0, 21.0])
    for test in paired_tests(results):
        assert test["seeds"] == 2
        assert test["difference"] == pytest.approx(3.5)
        assert test["p"] == pytest.approx(expected.pvalue)
        assert test["low"] < 3.5 < test["high"]
    assert paired_tests([result for result in results if result["seed"] == 0]) == []


def test_the_networks_take_as_many_operations_as_the_recipes(tmp_path):
    counts = {}
    for name in ("V", "Swin V", "ViL 32 V", "ViT V"):
        recipe = read_recipe(recipe_words(VARIANTS[name], IMAGES, "test", 0, tmp_path, []))
        counts[name] = count_operations(build_backbone(recipe), recipe)
    tokens, width, layers = 37, 96, 4
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    expected = 2 * ((tokens - 1) * 3 * 8**2 * width + layers * block + width**2)
    assert counts["ViT V"] == expected
    assert all(count == pytest.approx(counts["V"], rel=0.05) for count in counts.values())


def test_the_variance_of_regions_is_split_into_its_parts():
    generator = torch.Generator().manual_seed(0)
    parts = {"image": (400, 1, 8), "place": (1, 400, 8), "content": (400, 400, 8)}
    scales = {"image": 3.0, "place": 2.0, "content": 1.0}
    regions = sum(
        scales[name] * torch.randn(shape, generator=generator) for name, shape in parts.items()
    )
    split = split_variance(regions)
    for name, scale in scales.items():
        assert split[name] == pytest.approx(100 * scale**2 / 14, rel=0.05)
    assert split["dimensions"] == pytest.approx(8, rel=0.05)
    assert split_variance(regions[..., :1].expand(-1, -1, 8))["dimensions"] == pytest.approx(1)
