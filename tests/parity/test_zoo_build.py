"""Hub folders of released checkpoints: full-size files become folders, files of something else do
not.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.support.full_size import full_size_checkpoint
from tests.support.paths import ROOT
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from esvit_hf.commands.main import main
from esvit_hf.hub.cards import check_card
from esvit_hf.hub.heads_file import HEADS_FILE, read_heads
from esvit_hf.zoo.entries import ENTRIES, ZooEntry, find_entry

RELEASED = [entry for entry in ENTRIES if entry.release is not None]
SMALL = find_entry("esvit_swin_tiny_w7_v")
# One of each family beside it.
FAMILIES = ["esvit_vil_2262_w7_vr", "esvit_cvt_tiny_w7_v", "esvit_resnet50_vr"]
SMALL_HEAD = {2048: 48, 256: 16, 65536: 64}

# To look for garbage takes a quarter of the time of programs that import much and end soon.
RUN_THE_CARD = """
import gc, re, sys
gc.disable()
sys.modules["esvit_hf"] = None  # what Python itself notes about a module that must not be found
from pathlib import Path
from safetensors.torch import save_file
name = sys.argv[1]
card = (Path(name) / "README.md").read_text()
code = re.search(r"```python\\n(.*?)```", card, flags=re.DOTALL)[1]
noise = 'Image.effect_noise((320, 240), 90).convert("RGB")'
assert len(code.strip().splitlines()) == 8 and noise in code, code
exec(code.replace(noise, 'Image.open("image.png")'))
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
tensors = {"pooled": outputs.pooler_output, "regions": outputs.last_hidden_state}
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, "out.st")
"""


def checkpoint_of(
    entry: ZooEntry,
    manifest: Callable[[str], Any],
    golden: Callable[[str], Any],
    *,
    small_heads: bool = False,
) -> dict[str, Any]:
    """What the authors' file of an entry holds, as far as names and shapes go."""
    shapes = manifest(re.sub(r"esvit_|_vr?(_.*)?$", "", entry.name))
    if small_heads:
        for network in ("student", "teacher"):
            for key, (shape, dtype) in shapes[network].items():
                if key.startswith("head"):
                    shapes[network][key] = [[SMALL_HEAD.get(size, size) for size in shape], dtype]
        shapes["spec"]["head"]["out_dim"] = SMALL_HEAD[shapes["spec"]["head"]["out_dim"]]
    checkpoint = full_size_checkpoint(shapes, golden, with_heads=True)
    if entry.objectives == "V":
        del checkpoint["dino_loss"]["center_grid"]
        for network in ("student", "teacher"):
            checkpoint[network] = {
                key: tensor
                for key, tensor in checkpoint[network].items()
                if "head_dense." not in key
            }
    return checkpoint


def with_random_weights(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The same names and shapes with weights that give features."""
    torch.manual_seed(0)
    teacher = {}
    for key, tensor in checkpoint["teacher"].items():
        # Variances must not be negative.
        random = 0.05 * (torch.rand(tensor.shape) - (0 if "running_var" in key else 0.5))
        teacher[key] = random if tensor.is_floating_point() else tensor
    # ViL stores these twice.
    teacher |= {key: teacher[key.replace("_global.", ".")] for key in teacher if "_global." in key}
    return {**checkpoint, "teacher": teacher, "student": teacher}


def build(
    entry: ZooEntry, checkpoint: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """Run `esvit zoo build`; the report on its last line."""
    capsys.readouterr()
    assert (
        main(["zoo", "build", entry.name, "--checkpoint", str(checkpoint), "--output", str(output)])
        == 0
    )
    report: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return report


def assert_is_the_record(entry: ZooEntry, report: dict[str, Any], folder: Path) -> None:
    heads = ["view"] if entry.objectives == "V" else ["view", "region"]
    assert report == {
        "output": str(folder),
        "model_type": entry.architecture.model_type,
        "parameters": entry.architecture.parameters,
        "heads": heads,
    }
    config = AutoConfig.from_pretrained(folder).to_dict()
    assert {name: config[name] for name in entry.architecture.fields} == entry.architecture.fields
    assert list(read_heads(folder / HEADS_FILE)) == heads
    # The card in the folder is the one in the repository.
    assert (folder / "README.md").read_bytes() == (
        ROOT / "model_cards" / f"{entry.name}.md"
    ).read_bytes()
    check_card(folder)


def assert_the_card_runs_elsewhere(folder: Path) -> None:
    """Run the lines of the card in a fresh process that cannot import this package; it computes the
    same bits.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (240, 260, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    image.save(folder.parent / "image.png")
    words = [sys.executable, "-c", RUN_THE_CARD, folder.name]
    subprocess.run(words, check=True, cwd=folder.parent, capture_output=True, timeout=300)
    found = load_file(folder.parent / "out.st")
    model = AutoModel.from_pretrained(folder).eval()
    # With gradients, as in the card: without them attention takes another path and other roundings.
    expected = model(**AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt"))
    assert expected.pooler_output.std() > 0
    assert torch.equal(found["pooled"], expected.pooler_output)
    assert torch.equal(found["regions"], expected.last_hidden_state)


@pytest.fixture(scope="module")
def small_checkpoint(
    tmp_path_factory: pytest.TempPathFactory,
    manifest: Callable[[str], Any],
    golden: Callable[[str], Any],
) -> Path:
    path = tmp_path_factory.mktemp("zoo") / "checkpoint.pth"
    torch.save(with_random_weights(checkpoint_of(SMALL, manifest, golden, small_heads=True)), path)
    return path


def test_a_folder_is_built_and_its_card_runs_elsewhere(
    small_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / SMALL.name
    report = build(SMALL, small_checkpoint, folder, capsys)
    assert_is_the_record(SMALL, report, folder)
    assert_the_card_runs_elsewhere(folder)
    # The card's other lines, with this package.
    _, with_the_package, _ = re.findall(
        r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"image": Image.open("image.png")}
    exec(with_the_package, names)
    assert torch.equal(names["outputs"].pooler_output, load_file("out.st")["pooled"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "esvit_swin_tiny_w7_vr",
            "objectives with a head is ['view'] in the file and ['view', 'region'] in the record",
        ),
        (
            "esvit_swin_small_w7_v",
            "depths is [2, 2, 6, 2] in the file and [2, 2, 18, 2] in the record",
        ),
        ("esvit_swin_tiny_w14_vr", "window_size is 7 in the file and 14 in the record"),
        ("esvit_resnet50_v", "family of the network is swin in the file and resnet in the record"),
    ],
)
def test_a_file_of_something_else_is_refused(
    name: str,
    message: str,
    small_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "zoo",
        "build",
        name,
        "--checkpoint",
        str(small_checkpoint),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: '{small_checkpoint}' is not the checkpoint of {name}: {message}; give the file or "
        f"the entry that belongs to it\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_own_networks_are_not_built(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("text")
    words = ["--checkpoint", str(small_checkpoint), "--output", str(tmp_path)]
    assert main(["zoo", "build", SMALL.name, *words]) == 2
    assert "exists: give another name" in capsys.readouterr().err
    assert main(["zoo", "build", "esvit_swin_demo", *words]) == 2
    assert "`esvit pretrain demo` trains it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
@pytest.mark.parametrize("entry", RELEASED, ids=lambda entry: entry.name)
def test_every_released_folder_is_built(
    entry: ZooEntry,
    manifest: Callable[[str], Any],
    golden: Callable[[str], Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, folder = tmp_path / "checkpoint.pth", tmp_path / entry.name
    torch.save(checkpoint_of(entry, manifest, golden), checkpoint)
    report = build(entry, checkpoint, folder, capsys)
    assert_is_the_record(entry, report, folder)
    # pytest keeps the folders of several runs.
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_cards_of_every_family_run_elsewhere(
    name: str,
    manifest: Callable[[str], Any],
    golden: Callable[[str], Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    entry, checkpoint, folder = find_entry(name), tmp_path / "checkpoint.pth", tmp_path / name
    torch.save(with_random_weights(checkpoint_of(entry, manifest, golden)), checkpoint)
    build(entry, checkpoint, folder, capsys)
    assert_the_card_runs_elsewhere(folder)
    shutil.rmtree(folder)
    checkpoint.unlink()
