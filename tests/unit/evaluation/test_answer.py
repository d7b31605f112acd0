"""The table that an evaluation begins with."""

import json
from pathlib import Path

import pytest
from scipy.stats import binomtest
from tests.support.shades import save_small_swin, write_shades

from esvit_hf.commands.main import main
from esvit_hf.evaluation.answer import answer_rows, answer_table, format_answer
from esvit_hf.evaluation.task import Score, TaskResult
from esvit_hf.hub.measurements import read_measurements


def results(value: float) -> dict[str, TaskResult]:
    scores = [
        Score("top1", value, "", in_answer=True, chance=10.0, images=40),
        Score("top5", 99.0, ""),
    ]
    return {
        "knn": TaskResult("k-NN", "", {}, scores),
        "own": TaskResult("my task", "", {}, [Score("error", 3.0, "")]),
    }


@pytest.mark.parametrize(("right", "images"), [(0, 7), (30, 40), (40, 40), (1234, 5000)])
def test_intervals_are_those_of_scipy(right: int, images: int) -> None:
    score = Score("top1", 100 * right / images, "", in_answer=True, images=images)
    (row,) = answer_rows({"knn": TaskResult("k-NN", "", {}, [score])}, {})
    expected = binomtest(right, images).proportion_ci(method="wilson")
    assert row["interval"] == pytest.approx([100 * expected.low, 100 * expected.high], abs=2e-3)


def test_numbers_stand_beside_those_of_the_random_network() -> None:
    rows = answer_rows(results(75.0), results(12.5))
    assert [(row["task"], row["value"], row["random_network"]) for row in rows] == [
        ("k-NN", 75.0, 12.5),
        ("my task", 3.0, 3.0),
    ]
    assert (rows[0]["chance"], rows[1]["chance"], rows[1]["interval"]) == (10.0, None, None)
    text = format_answer({"answer": rows}).splitlines()
    assert text[0].split("  ")[0] == "task"
    assert text[1].split() == ["k-NN", "top1", "75.00", "59.81", "to", "85.81", "10.00", "12.50"]
    assert "random" not in answer_table(answer_rows(results(75.0), {}))


def test_tasks_without_scores_have_no_table() -> None:
    assert format_answer({"answer": answer_rows({"own": TaskResult("", "", {}, [])}, {})}) == ""


def test_an_evaluation_begins_with_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_small_swin(tmp_path / "model")
    write_shades(tmp_path / "shades", "train", 40)
    write_shades(tmp_path / "shades", "test", 13, seed=1)
    words = ["evaluate", "model", "shades", "--tasks", "knn,linear", "--knn.k", "[1]"]
    words += ["--linear.epochs", "2", "--linear.blocks", "[1]", "--linear.output_dir", "probe"]
    words += ["--compare_random", "true", "--report", "out", "--num_workers", "0"]
    assert main([*words, "--features_folder", "kept"]) == 0
    head, *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert head.split("  ")[0] == "task" and len(lines) == len(report["answer"]) == 2
    knn, linear = report["answer"]
    assert knn["chance"] == pytest.approx(100 / 3, abs=1e-3)
    assert knn["value"] == report["tasks"]["knn"]["accuracies"][0]["top1"]
    assert linear["random_network"] is not None
    assert "--compare_random true" in report["command"]
    records = {
        (row.task, row.metric): row for row in read_measurements(Path("out/measurements.json"))
    }
    assert records["k-NN", "top1"].random_network == knn["random_network"]
    assert records["linear probe", "top5"].random_network is not None
    page = (tmp_path / "out" / "report.md").read_text()
    assert page.index("random network") < page.index("## k-NN")
    folded = page[page.index("<details") : page.index("</details>")]
    assert "Validation" in folded and "| learning_rate |" in folded
