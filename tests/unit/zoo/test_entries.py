"""The zoo's records: complete, consistent with each other, with the configurations and with the
reference's shapes.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from tests.support.paths import ROOT
from transformers import CONFIG_MAPPING, AutoModel

import esvit_hf
from esvit_hf import EsvitCvtConfig, EsvitSwinConfig, EsvitVilConfig
from esvit_hf.commands.main import main
from esvit_hf.hub.network_rows import count_operations
from esvit_hf.pretraining.recipe_reading import load_recipe
from esvit_hf.pretraining.shipped_recipes import list_recipes
from esvit_hf.reference.architectures import (
    CVT_TINY_W7,
    RESNET_50,
    SWIN_TINY_W7,
    VIL_2262_W7,
    Architecture,
)
from esvit_hf.zoo.entries import ENTRIES, ZooEntry, find_entry

RELEASED = [entry for entry in ENTRIES if entry.release is not None]
OWN = [entry for entry in ENTRIES if entry.release is None]
ARCHITECTURES = list({id(entry.architecture): entry.architecture for entry in RELEASED}.values())
every_released = pytest.mark.parametrize("entry", RELEASED, ids=lambda entry: entry.name)


def manifest_name(architecture: Architecture) -> str:
    if architecture.family != "swin":
        return {"vil": "vil_2262_w7", "cvt": "cvt_tiny_w7", "resnet": "resnet50"}[
            architecture.family
        ]
    size = {"Swin-T": "tiny", "Swin-S": "small", "Swin-B": "base"}[architecture.title]
    return f"swin_{size}_w{architecture.window}"


def test_all_released_checkpoints_are_there_once() -> None:
    assert len(RELEASED) == 19
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    facts = []
    for entry in RELEASED:
        network = entry.architecture
        facts.append(
            (network.title, network.window, entry.objectives, entry.data, entry.training.batch)
        )
    assert len(set(facts)) == 19


@every_released
def test_the_name_says_what_it_is(entry: ZooEntry) -> None:
    first = f"esvit_{manifest_name(entry.architecture)}_{entry.objectives.lower().replace('+', '')}"
    if entry.training.batch == 1024 and entry.architecture.family == "swin":
        first += f"_{re.sub('[^a-z0-9]', '', entry.data.name.lower())}_bs1024"
    assert entry.name == first


@every_released
def test_numbers_are_plausible(entry: ZooEntry) -> None:
    release = entry.release
    assert release is not None
    for numbers in (release.readme, release.paper):
        assert 60 < numbers.knn < numbers.linear < 82
    # The paper's tables and the README differ in the last digit at most.
    assert abs(release.readme.linear - release.paper.linear) <= 0.101
    assert abs(release.readme.knn - release.paper.knn) <= 0.201
    assert 0 < release.knn_epoch <= entry.training.epochs
    assert release.linear_epoch is None or 0 < release.linear_epoch <= entry.training.epochs


@every_released
def test_training_facts_fit_together(entry: ZooEntry) -> None:
    start = entry.training.region_start_epoch
    assert (start is None) == (entry.objectives == "V")
    assert start is None or 0 <= start < entry.training.epochs
    assert entry.training.batch in (512, 1024)
    assert entry.training.recipe in list_recipes()
    assert entry.license == "mit"


@every_released
def test_the_region_loss_helps_where_both_were_released(entry: ZooEntry) -> None:
    sibling = entry.view_only_sibling
    assert (sibling is None) == (entry.objectives == "V" or entry.architecture.window == 14)
    if sibling is not None:
        other = find_entry(sibling)
        assert (other.objectives, other.architecture, other.data) == (
            "V",
            entry.architecture,
            entry.data,
        )
        assert entry.release is not None and other.release is not None
        assert entry.release.readme.linear > other.release.readme.linear
        assert entry.release.readme.knn > other.release.readme.knn


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=manifest_name)
def test_parameters_are_those_of_the_reference(
    architecture: Architecture, manifest: Callable[[str], dict[str, Any]]
) -> None:
    assert architecture.parameters == manifest(manifest_name(architecture))["backbone_parameters"]


@pytest.mark.parametrize("architecture", [SWIN_TINY_W7, RESNET_50], ids=manifest_name)
def test_operations_are_those_that_are_counted(architecture: Architecture) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(
            CONFIG_MAPPING[architecture.model_type](**architecture.fields)
        )
    assert architecture.operations == count_operations(model, (3, 224, 224))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=manifest_name)
def test_the_configuration_is_the_preset(architecture: Architecture) -> None:
    config = CONFIG_MAPPING[architecture.model_type](**architecture.fields)
    if architecture.family == "swin":
        size: Any = {"Swin-T": "tiny", "Swin-S": "small", "Swin-B": "base"}[architecture.title]
        window: Any = architecture.window
        preset: Any = EsvitSwinConfig.from_preset(size, window_size=window)
    elif architecture is VIL_2262_W7:
        preset = EsvitVilConfig.from_preset("tiny")
    elif architecture is CVT_TINY_W7:
        preset = EsvitCvtConfig.from_preset("tiny")
    else:
        preset = CONFIG_MAPPING["resnet"]()

    def plain(config: Any) -> dict[str, Any]:
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in config.to_dict().items()
        }

    assert plain(config) == plain(preset)


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.name)
def test_an_own_entry_is_its_recipe(entry: ZooEntry) -> None:
    recipe = load_recipe(entry.training.recipe)
    assert recipe.model.name == entry.architecture.model_type
    assert recipe.model.config == entry.architecture.fields
    assert (recipe.run.batch_size, recipe.schedule.num_epochs) == (
        entry.training.batch,
        entry.training.epochs,
    )
    region = recipe.objectives.get("region")
    start = None if region is None else region.start_epoch
    assert start == entry.training.region_start_epoch
    assert Path(recipe.data.dataset).name == entry.data.folder
    model = AutoModel.from_config(
        CONFIG_MAPPING[entry.architecture.model_type](**entry.architecture.fields)
    )
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == entry.architecture.parameters
    )
    size = entry.architecture.fields["image_size"]
    assert count_operations(model, (3, size, size)) == entry.architecture.operations


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.name)
def test_an_own_entry_has_measured_numbers(entry: ZooEntry) -> None:
    assert {row.task for row in entry.measurements} >= {"k-NN", "linear probe"}
    assert all(row.command and row.protocol and 0 < row.value < 100 for row in entry.measurements)


def test_the_supervised_network_and_the_time_are_those_of_the_study() -> None:
    rows = json.loads((ROOT / "studies/results/reproduction.json").read_text())["results"]
    supervised = [row["knn"] for row in rows if row["variant"] == "supervised"]
    for name in ("esvit_swin_tiny_imagenet", "esvit_cvt_tiny_imagenet"):
        expected = f"{mean(supervised):.1f} in k-NN top1: the mean of three"
        assert expected in find_entry(name).comparison
    (row,) = (row for row in rows if (row["variant"], row["seed"]) == ("V+R", 0))
    minutes, processor = row["processor_minutes"], row["machine"]["processor"]
    time = find_entry("esvit_cvt_tiny_imagenet").training.time
    assert time == f"{minutes:.0f} minutes on one core of an {processor}"


def test_measurements_belong_to_entries() -> None:
    folder = Path(esvit_hf.__file__).parent / "zoo" / "measurements"
    assert {path.stem for path in folder.glob("*.json")} == {
        entry.name for entry in ENTRIES if entry.measurements
    }


def test_no_address_with_a_token_is_kept() -> None:
    files = (Path(esvit_hf.__file__).parent / "zoo").rglob("*.*")
    text = "".join(path.read_text() for path in files if path.suffix in (".py", ".json", ".md"))
    assert "sig=" not in text and "blob.core.windows.net" not in text


def test_a_wrong_name_is_explained() -> None:
    with pytest.raises(ValueError, match="did you mean esvit_swin_tiny_w7_v"):
        find_entry("esvit_swin_tiny_w7")
    with pytest.raises(ValueError, match="`esvit zoo` lists them"):
        find_entry("?")


def test_the_zoo_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [entry.name for entry in ENTRIES]
    row = next(line for line in lines if line.startswith("esvit_resnet50_vr "))
    assert row.split("  ")[-1] == "reported by the authors"
    assert "75.7" in row and "71.3" in row
    assert lines[-1].endswith("measured here")


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        (["--arch", "swin-t"], lambda entry: entry.architecture.title == "Swin-T"),
        (
            ["--arch", "swin", "--objectives", "V"],
            lambda e: e.architecture.family == "swin" and e.objectives == "V",
        ),
        (["--data", "imagenet"], lambda entry: "ImageNet" in entry.data.name),
        (
            ["--data", "webvision", "--objectives", "V"],
            lambda entry: entry.data.name == "WebVision-v1",
        ),
    ],
)
def test_filters(
    words: list[str], fits: Callable[[ZooEntry], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["zoo", *words, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["entries"]
    assert [record["name"] for record in records] == [
        entry.name for entry in ENTRIES if fits(entry)
    ]
    assert all(
        record["release"] is None or record["release"]["readme"]["linear"] for record in records
    )


def test_a_filter_that_nothing_fits_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "--arch", "vgg"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Swin-T" in error and "WebVision-v1" in error
