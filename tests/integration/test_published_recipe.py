"""The command of a run's card, in a clean folder, makes the same weights again."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from tests.support.hub_server import OWNER, HubServer
from tests.support.small_runs import small_run

from esvit_hf.commands.main import main
from esvit_hf.common.files import digest_file
from esvit_hf.hub.push import publish
from esvit_hf.pretraining.loop import pretrain

REPO = f"{OWNER}/run"


def test_the_recipe_of_a_resumed_run_repeats_it(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "first" / "photos"
    photos.mkdir(parents=True)
    for number in range(32):
        Image.effect_noise((40, 40), 10 + 3 * number).convert("RGB").save(photos / f"{number}.png")
    words = ("--data.dataset", str(photos), "--schedule.num_epochs", "2", "--run.batch_size", "16")
    run = tmp_path / "first" / "run"
    pretrain(small_run(run, *words, "--schedule.max_steps", "2"))
    pretrain(small_run(run, *words, "--schedule.max_steps", "4", "--run.resume", "true"))
    publish(run, REPO, load=False)
    recipe = hub.files(REPO)["recipe.yaml"]
    assert recipe.decode() in (run / "README.md").read_text()
    clean = tmp_path / "clean"
    clean.mkdir()
    shutil.copytree(photos, clean / "photos")
    (clean / "recipe.yaml").write_bytes(recipe)
    monkeypatch.chdir(clean)
    assert main(["pretrain", "recipe.yaml"]) == 0
    for name in ("model.safetensors", "pretraining_heads.safetensors"):
        assert digest_file(clean / "run" / name) == digest_file(run / name)
