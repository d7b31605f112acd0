"""The command of a card, run in a clean folder, gives the number of the card."""

import json
import re
import shlex
from pathlib import Path

import pytest
from tests.support.paths import FASHION_MNIST
from tests.support.small_networks import export_small_run
from tests.support.small_runs import read_metrics, small_run

from esvit_hf.commands.main import main
from esvit_hf.evaluation.evaluate import evaluate
from esvit_hf.pretraining.loop import pretrain

OPTIONS = [
    {},
    {"test_fraction": 0.25, "seed": 7},
    {"test_split": "test[:30]", "seed": 3},
]


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the data under the name that cards give it, as the working directory."""
    folder = tmp_path / "clean"
    folder.mkdir()
    (folder / FASHION_MNIST.name).symlink_to(FASHION_MNIST)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return folder


def shell_commands(card: Path) -> list[list[str]]:
    """The command lines of a card that begin with `esvit`."""
    blocks = re.findall(r"```bash\n(.*?)```", card.read_text(), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def run_again(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert words[0] == "esvit"
    capsys.readouterr()
    assert main([*words[1:], *(["--num_workers", "0"] if words[1] == "evaluate" else [])]) == 0
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("options", OPTIONS)
def test_of_a_probe(
    options: dict, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_small_run("esvit_swin", tmp_path / "run")
    evaluate(
        tmp_path / "run",
        FASHION_MNIST,
        tasks="linear",
        train_split="train[:100]",
        **({"test_split": "test[:20]"} | options if "test_fraction" not in options else options),
        linear={
            **{"blocks": [1], "epochs": 3, "learning_rates": [0.01, 0.3], "augment": bool(options)},
            **{"validation_fraction": 0.3, "batch_size": 64, "output_dir": tmp_path / "probe"},
        },
        features_folder=tmp_path / "features",
        num_workers=0,
    )
    card = (tmp_path / "probe" / "README.md").read_text()
    for words in ("train[:100]", "0.01, 0.3", f"| seed | {options.get('seed', 0)} |", "0.3"):
        assert words in card
    assert ("0.25 of train[:100]" in card) == ("test_fraction" in options)
    assert ("random crops and flips" in card) == bool(options) and str(tmp_path) not in card
    (clean / "run").symlink_to(tmp_path / "run")
    trained, measured = shell_commands(tmp_path / "probe" / "README.md")
    assert trained == measured
    run_again(measured, capsys)
    first, again = (
        json.loads((folder / "probe" / "measurements.json").read_text())
        for folder in (tmp_path, clean)
    )
    assert again == first


def test_of_an_evaluation(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_small_run("esvit_swin", tmp_path / "run")
    found = evaluate(
        tmp_path / "run",
        FASHION_MNIST,
        tasks="knn,few_shot",
        train_split="train[:100]",
        test_fraction=0.3,
        seed=5,
        knn={"k": [5]},
        report=tmp_path / "report",
        features_folder=tmp_path / "features",
        num_workers=0,
    )
    assert found is not None
    (clean / "run").symlink_to(tmp_path / "run")
    again = json.loads(run_again(shlex.split(found["command"]), capsys))
    assert again["tasks"] == json.loads(json.dumps(found["tasks"]))
    first, second = (
        json.loads((folder / "report" / "measurements.json").read_text())
        for folder in (tmp_path, clean)
    )
    assert first == second


@pytest.mark.parametrize("resumed", [False, True])
def test_of_a_run(
    resumed: bool, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    if resumed:
        pretrain(small_run(output, "--schedule.max_steps", "4"))
    pretrain(small_run(output, *(["--run.resume", "true"] if resumed else [])))
    card = (output / "README.md").read_text()
    assert str(tmp_path) not in card
    (clean / "recipe.yaml").write_text(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    (words,) = [line for line in shell_commands(output / "README.md") if "pretrain" in line]
    run_again(words, capsys)
    for name in ("loss", "view_loss", "gradient_norm"):
        assert [line[name] for line in read_metrics(clean / "run")] == [
            line[name] for line in read_metrics(output)
        ]
    rows = dict(re.findall(r"^\| (\w*loss) \| ([\d.e-]+) \|$", card, re.MULTILINE))
    assert rows
    for name, value in rows.items():
        assert float(value) == pytest.approx(read_metrics(clean / "run")[-1][name], rel=1e-2)
