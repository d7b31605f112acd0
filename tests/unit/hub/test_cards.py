"""Model cards: generated, true to their records, accepted by the library, and refused when they are
damaged.
"""

import copy
import re
import shlex
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.support.paths import FASHION_MNIST, ROOT
from transformers import CONFIG_MAPPING

from esvit_hf.hub.cards import (
    card_license,
    check_card,
    make_card,
    replace_section,
    update_card,
    write_card,
)
from esvit_hf.hub.measurements import MEASUREMENTS_FILE, Measurement, write_measurements
from esvit_hf.hub.network_rows import describe_time, network_rows
from esvit_hf.pretraining.recipe_reading import read_recipe
from esvit_hf.zoo.entries import AUTHORS_COMMIT, ENTRIES, ZooEntry, find_entry
from esvit_hf.zoo.entry_cards import entry_facts, released_table, write_cards

every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
ENTRY = find_entry("esvit_swin_tiny_w7_vr")
ON_OTHER_DATA = Measurement(
    "k-NN", "user/birds", "test", "top1", 61.25, "k = 20", "esvit evaluate a user/birds"
)
ON_IMAGENET = Measurement(
    "k-NN", "ILSVRC/imagenet-1k", "validation", "top1", 75.625, "k = 10", "esvit evaluate a b"
)


def card_of(entry: ZooEntry) -> ModelCard:
    return make_card(entry_facts(entry), entry.measurements)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the card of a released checkpoint."""
    write_card(tmp_path, entry_facts(ENTRY))
    return tmp_path


def test_the_cards_of_the_repository_are_the_generated_ones(tmp_path: Path) -> None:
    for picture in (ROOT / "model_cards").glob("*.webp"):
        shutil.copy(picture, tmp_path)
    assert write_cards(tmp_path) == {"output": str(tmp_path), "cards": len(ENTRIES)}
    generated = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_bytes() for path in (ROOT / "model_cards").iterdir()}
    assert generated.keys() == kept.keys()
    assert [name for name in kept if kept[name] != generated[name]] == [], "run `make cards`"


def test_the_table_of_the_documentation_is_the_generated_one() -> None:
    text = (ROOT / "docs" / "zoo.md").read_text()
    assert replace_section(text, "zoo", released_table(), ROOT / "docs" / "zoo.md") == text, (
        "run `make cards`"
    )
    assert released_table().count("\n") == 20


def test_a_text_without_a_place_for_the_table_is_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "README.md"
    text.write_text("# Title\n")
    with pytest.raises(ValueError, match=r"README.md lacks the comments '<!-- zoo: begin -->'"):
        write_cards(tmp_path / "cards", page=text)
    assert text.read_text() == "# Title\n"


@every_entry
def test_every_share_stands_in_the_record(entry: ZooEntry) -> None:
    release = entry.release
    known = [row.value for row in entry.measurements]
    known += [row.random_network for row in entry.measurements if row.random_network is not None]
    known += [float(number) for number in re.findall(r"\d+\.\d+", entry.comparison)]
    if release is not None:
        known += [
            value
            for numbers in (release.readme, release.paper)
            for value in (numbers.linear, numbers.knn)
        ]
    content = str(card_of(entry)).replace(AUTHORS_COMMIT, "")
    found = {float(number) for number in re.findall(r"(?<![\d.])[1-9]\d\.\d+", content)}
    assert found == set(known)
    # The protocol of a linear probe names its held-out share.
    assert not re.search(r"\d\s*%(?!\s+of\s+the\s+training)", content)


@every_entry
def test_authors_numbers_stand_apart_from_measured_ones(entry: ZooEntry) -> None:
    content = str(card_of(entry))
    _, _, evaluation = content.partition("## Evaluation")
    before, _, after = evaluation.partition("### Measured here")
    assert ("### Reported by the authors" in before) == (entry.release is not None)
    measured = after.partition("<!-- measured: end -->")[0]
    numbers = [number for row in entry.measurements for number in (row.value, row.random_network)]
    assert re.findall(r"\d\d\.\d+", measured) == [
        str(number) for number in numbers if number is not None
    ]
    for row in entry.measurements:
        assert row.command in measured and row.protocol in measured


@every_entry
def test_metadata_come_back_and_name_their_source(entry: ZooEntry, tmp_path: Path) -> None:
    data: Any = ModelCard(str(card_of(entry))).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        entry.license,
        "transformers",
        "image-feature-extraction",
    )
    assert {"esvit", entry.architecture.model_type, "arxiv:2106.09785"} <= set(data.tags)
    results = {result.metric_name: result for result in data.eval_results}
    if entry.release is None:
        assert [result.metric_value for result in results.values()] == [
            row.value for row in entry.measurements
        ]
        assert all(result.source_url is None for result in results.values())
    else:
        linear, knn = (
            results[f"{task} top-1 (%), reported by the authors"]
            for task in ("linear probe", "k-NN")
        )
        assert (linear.metric_value, knn.metric_value) == (
            entry.release.readme.linear,
            entry.release.readme.knn,
        )
        assert len(results) == 2
        for result in (linear, knn):
            assert result.verified is False
            assert result.source_name == "README of microsoft/esvit"
            assert AUTHORS_COMMIT in result.source_url
            assert (result.dataset_type, result.dataset_split) == (
                "ILSVRC/imagenet-1k",
                "validation",
            )


@every_entry
def test_the_command_of_a_card_trains_what_the_record_says(
    entry: ZooEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = re.search(r"```bash\n(accelerate launch .*)\n```", str(card_of(entry)))
    assert command is not None
    launch, _, words = command[1].partition(" examples/pretrain.py ")
    processes = int(launch.split()[-1]) if "--num_processes" in launch else 1
    recipe = read_recipe(shlex.split(words))
    training = entry.training
    assert recipe.run.batch_size * processes * recipe.run.accumulation_steps == training.batch
    assert recipe.schedule.num_epochs == training.epochs
    if training.region_start_epoch is None:
        assert {name: chosen.weight for name, chosen in recipe.objectives.items()} == {"view": 1}
    else:
        weights = {name: chosen.weight for name, chosen in recipe.objectives.items()}
        assert weights.keys() == {"view", "region"}
        # The authors' networks have as much of both.
        assert entry.release is None or weights == {"view": 0.5, "region": 0.5}
        assert recipe.objectives["region"].start_epoch == training.region_start_epoch
    assert recipe.model.name == entry.architecture.model_type
    config = CONFIG_MAPPING[recipe.model.name]
    ours, recorded = (
        config(**recipe.model.config).to_dict(),
        config(**entry.architecture.fields).to_dict(),
    )
    assert {
        name: list(value) if isinstance(value, tuple) else value for name, value in ours.items()
    } == recorded
    expected = (
        {entry.data.hub_id}
        if entry.release and entry.data.hub_id
        else {f"outputs/{entry.data.folder}"}
    )
    shipped = str(FASHION_MNIST.parent / entry.data.folder)
    assert recipe.data.dataset in expected | {f"path/to/{entry.data.folder}", shipped}


def test_a_good_card_passes(folder: Path) -> None:
    check_card(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("library_name: transformers\n", "", "the metadata lack library_name"),
        (
            "image-feature-extraction",
            "image-features",
            "pipeline_tag is 'image-features', which is none of",
        ),
        ("license: mit", "license: 3", "license is 3, not a word"),
        ("license: mit", "license: other", "add license_name and license_link"),
        ("- esvit\n", "- 4\n", "tags is .* not a list of words"),
        ("datasets:\n- ILSVRC/imagenet-1k", "datasets:\n- a/b/c", "datasets: Repo id"),
        ("value: 78.0", "value: high", "the value of linear probe .* is 'high', not a number"),
        ("value: 78.0", "value: .nan", "is nan, not a number"),
        ("verified: false", "verified: true", "claims to be verified"),
        ("url: https://", "url: ", "the source of .* is 'github.com.*', not an address"),
        (
            "      type: ILSVRC/imagenet-1k\n",
            "",
            "metadata of .* cannot be read: Invalid `model_index`",
        ),
        ("      url: https", "      address: https", "model-index|source_url"),
        (
            "    metrics:\n",
            "    extra: 1\n    metrics:\n",
            "model-index is not what the library writes",
        ),
        ("---\ndatasets", "--\ndatasets", "does not start with metadata"),
        ("library_name: transformers", "library_name: [", "metadata of .* cannot be read"),
        (
            "tags:\n",
            "extra: " + "x" * 60_000 + "\ntags:\n",
            "the metadata of .* have 6.... bytes, more than 50000",
        ),
        ("## Use", "![f](f.png)", "it shows f.png, which is not in the folder"),
        ("Nothing yet", "Much", "it does not say what measurements.json and the figures"),
    ],
)
def test_a_damaged_card_is_refused_in_one_line(
    folder: Path, old: str, new: str, message: str
) -> None:
    path = folder / "README.md"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message) as raised:
        check_card(folder)
    assert "README.md" in str(raised.value)


def test_a_missing_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no readable card"):
        check_card(tmp_path)
    with pytest.raises(ValueError, match="is no readable card"):
        update_card(tmp_path)


METADATA = ModelCard(str(make_card(entry_facts(ENTRY)))).data.to_dict()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda values: (
        st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=8), values, max_size=2)
    ),
    max_leaves=4,
)


def places_of(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in nested metadata."""
    inside = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    return [path, *(place for key, value in inside for place in places_of(value, (*path, key)))]


@settings(max_examples=100, deadline=None)
@given(place=st.sampled_from(places_of(METADATA)[1:]), value=VALUES)
def test_whatever_stands_in_the_metadata_is_passed_or_refused(
    place: tuple[Any, ...], value: Any
) -> None:
    metadata = copy.deepcopy(METADATA)
    node: Any = metadata
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "README.md"
        path.write_text(f"---\n{yaml.safe_dump(metadata)}---\n# Title\n", encoding="utf-8")
        try:
            check_card(Path(folder))
        except ValueError as error:
            assert "\n" not in str(error)


def test_a_card_follows_the_measurements_and_figures(folder: Path) -> None:
    write_measurements([ON_OTHER_DATA], folder / MEASUREMENTS_FILE)
    Image.new("RGB", (2, 2)).save(folder / "training.png")
    with pytest.raises(ValueError, match=r"does not say what measurements.json"):
        check_card(folder)
    update_card(folder)
    check_card(folder)
    first = (folder / "README.md").read_bytes()
    update_card(folder)
    assert (folder / "README.md").read_bytes() == first
    text = first.decode()
    assert "| k-NN | user/birds, test | top1 | 61.25 | k = 20 |" in text
    assert "esvit evaluate a user/birds" in text and "![training.png](training.png)" in text
    data: Any = ModelCard(text).data
    assert [result.metric_value for result in data.eval_results] == [78.0, 75.7, 61.25]
    assert [result.source_url is None for result in data.eval_results] == [False, False, True]
    # Measured again, on something else: the old number goes.
    write_measurements(
        [replace(ON_OTHER_DATA, dataset="user/fish", value=62.5)], folder / MEASUREMENTS_FILE
    )
    update_card(folder)
    text = (folder / "README.md").read_text()
    assert "61.25" not in text and "user/birds, test" not in text
    again: Any = ModelCard(text).data
    assert [result.metric_value for result in again.eval_results] == [78.0, 75.7, 62.5]


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
SHARES = st.floats(0, 100)
RECORDS = st.builds(
    Measurement, WORDS, WORDS, WORDS, WORDS, SHARES, WORDS, WORDS, st.none() | SHARES
)


@settings(max_examples=60, deadline=None)
@given(records=st.lists(RECORDS, max_size=3))
def test_any_measurements_come_into_the_card_and_back(records: list[Measurement]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_card(folder, entry_facts(ENTRY))
        write_measurements(records, folder / MEASUREMENTS_FILE)
        update_card(folder)
        check_card(folder)
        content = (folder / "README.md").read_text()
        update_card(folder)
        assert (folder / "README.md").read_text() == content
        data: Any = ModelCard(content).data
        measured = [
            result.metric_value for result in data.eval_results if result.source_url is None
        ]
        assert sorted(measured) == sorted(record.value for record in records)
        rows = [
            line
            for line in content.partition("Measured here")[2].splitlines()
            if line.startswith("| ")
        ]
        assert len(rows) == (len(records) + 1 if records else 0)
        columns = 5 + any(record.random_network is not None for record in records)
        assert all(len(re.findall(r"(?<!\\)\|", row)) == columns + 1 for row in rows)


def test_numbers_of_our_own_are_never_under_the_authors_name(folder: Path) -> None:
    write_measurements([ON_IMAGENET], folder / MEASUREMENTS_FILE)
    update_card(folder)
    check_card(folder)
    data: Any = ModelCard((folder / "README.md").read_text()).data
    assert [(result.metric_value, result.source_url) for result in data.eval_results] == [
        (75.625, None)
    ]
    assert "| README of microsoft/esvit | 78.0 | 75.7 |" in (folder / "README.md").read_text()


def test_a_card_gets_the_name_of_its_repository(folder: Path) -> None:
    update_card(folder, "someone/esvit-tiny")
    check_card(folder)
    card = ModelCard((folder / "README.md").read_text())
    assert card.text.count('from_pretrained("someone/esvit-tiny"') == 4
    assert "is the folder of the network" not in card.text
    assert 'from_pretrained("esvit_swin_tiny_w7_vr"' not in card.text
    data: Any = card.data
    assert data.model_name == "someone/esvit-tiny"


def test_a_card_gets_the_license_of_its_owner(folder: Path) -> None:
    write_card(folder, replace(entry_facts(ENTRY), license=None, network=network_rows({}, 1)))
    check_card(folder)
    assert "| license | not stated: ask the owner" in (folder / "README.md").read_text()
    assert card_license(folder) is None
    update_card(folder, license_name="cc-by-nc-4.0")
    check_card(folder)
    assert "\n| license | cc-by-nc-4.0 |\n" in (folder / "README.md").read_text()
    assert card_license(folder) == "cc-by-nc-4.0"


def test_what_a_network_costs_is_written_with_two_digits() -> None:
    rows = network_rows(
        {"hidden_size": 768}, 86_743_224, operations=8_979_597_312, training_time=describe_time(840)
    )
    assert rows["weights in float32"] == "347 MB" and rows["numbers of a feature"] == "768"
    assert rows["operations for one image"] == "9 GFLOP" and rows["training time"] == "14 minutes"
    times = (5, 119, 120, 7300, 260_000)
    assert [describe_time(seconds) for seconds in times] == [
        "5 seconds",
        "119 seconds",
        "2 minutes",
        "2 hours",
        "3 days",
    ]


def test_the_card_of_a_classifier(tmp_path: Path) -> None:
    facts = replace(
        entry_facts(ENTRY),
        classes=10,
        base_model="someone/esvit-tiny",
        has_heads=False,
        reported=(),
    )
    write_card(tmp_path, facts)
    update_card(tmp_path, "someone/esvit-clothes")
    check_card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert 'AutoModelForImageClassification.from_pretrained("someone/esvit-clothes"' in text
    assert "AutoModel.from_pretrained" not in text and "a score for each of the 10 classes" in text
    data: Any = ModelCard(text).data
    assert (data.pipeline_tag, data.base_model) == ("image-classification", "someone/esvit-tiny")


def test_a_card_of_other_hands_is_not_overwritten(folder: Path) -> None:
    path = folder / "README.md"
    path.write_text(path.read_text().replace("<!-- measured: end -->", ""))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="lacks the comments '<!-- measured: begin -->'"):
        update_card(folder)
    assert path.read_bytes() == before


def test_numbers_of_a_run_have_sensible_digits() -> None:
    numbers = {"loss": 2.123456789, "rate": 1e-5, "step": 12345}
    facts = replace(entry_facts(ENTRY), during_run=numbers)
    text = make_card(facts).text
    assert "| loss | 2.123 |" in text and "| rate | 1e-05 |" in text and "| step | 12345 |" in text
