"""Saved folders load without this package: a fresh process that cannot import it computes the same
bits.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.support.small_networks import SMALL_NETWORKS, export_small_run
from transformers import (
    CONFIG_MAPPING,
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
)

import esvit_hf

AUTO_CLASSES = {
    "AutoConfig": AutoConfig,
    "AutoModel": AutoModel,
    "AutoModelForImageClassification": AutoModelForImageClassification,
    "AutoBackbone": AutoBackbone,
}
# The files of every network; its own come on top.
COMMON_FILES = {
    "configuration_esvit_common.py",
    "modeling_esvit_common.py",
}
WINDOWS = "modeling_esvit_windows.py"
OWN_FILES = {
    "esvit_swin": {"configuration_esvit_swin.py", "modeling_esvit_swin.py", WINDOWS},
    "esvit_vil": {"configuration_esvit_vil.py", "modeling_esvit_vil.py"},
    "esvit_cvt": {"configuration_esvit_cvt.py", "modeling_esvit_cvt.py", WINDOWS},
}

# To look for garbage takes a quarter of the time of programs that import much and end soon.
WITHOUT_THE_PACKAGE = """
import gc, json, sys
gc.disable()
sys.modules["esvit_hf"] = None  # what Python itself notes about a module that must not be found
try:
    import esvit_hf
    raise SystemExit("the package can be imported: nothing would be shown")
except ImportError:
    pass
from pathlib import Path
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
    pipeline,
)
root = Path(sys.argv[1])
image, results, places = Image.open(root / "image.png"), {}, {}
for name in json.loads(sys.argv[2]):
    model_folder = root / name / "model"
    processor = AutoImageProcessor.from_pretrained(model_folder, trust_remote_code=True)
    pixels = processor(image, return_tensors="pt")
    model = AutoModel.from_pretrained(model_folder, trust_remote_code=True)
    folder = root / name / "classifier"
    classifier = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    inside_classifier = AutoModel.from_pretrained(folder, trust_remote_code=True)
    config = AutoConfig.from_pretrained(root / name / "backbone", trust_remote_code=True)
    backbone_class = type(AutoBackbone.from_config(config, trust_remote_code=True))
    backbone = backbone_class.from_pretrained(root / name / "backbone")
    pretrained = AutoModel.from_pretrained(root / name / "pretrained", trust_remote_code=True)
    with torch.no_grad():
        results |= {
            f"{name}.pixels": pixels["pixel_values"],
            f"{name}.regions": model(**pixels).last_hidden_state,
            f"{name}.logits": classifier(**pixels).logits,
            f"{name}.inside_classifier": inside_classifier(**pixels).pooler_output,
            f"{name}.map": backbone(**pixels).feature_maps[0],
            f"{name}.pretrained": pretrained(**pixels).pooler_output,
        }
    extractor = pipeline(
        "image-feature-extraction",
        model=str(model_folder), trust_remote_code=True, pool=True, device="cpu",
    )
    results[f"{name}.pipeline"] = torch.tensor(extractor(image))
    loaded = (processor, model, classifier, backbone, pretrained)
    places[name] = [type(part).__module__ for part in loaded]
    classifier.save_pretrained(root / name / "saved_again")
    processor.save_pretrained(root / name / "saved_again")
save_file(results, root / "results.safetensors")
(root / "places.json").write_text(json.dumps(places))
"""


def run_without_the_package(root, *arguments):
    """Run the script above in a Python that sees the installed libraries and nothing of this
    checkout.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    environment |= {"HF_HOME": str(root / "hf_home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", WITHOUT_THE_PACKAGE, str(root), *arguments]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def traveled(tmp_path_factory):
    """Folder with everything saved here, outputs computed here and outputs computed by the other
    process.
    """
    root = tmp_path_factory.mktemp("travel")
    image = Image.effect_noise((50, 40), 90).convert("RGB")
    image.save(root / "image.png")
    processor = esvit_hf.EsvitImageProcessor(
        size={"shortest_edge": 36},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.4, 0.5, 0.6],
    )
    pixels = processor(image, return_tensors="pt")
    expected = {}
    for name, fields in SMALL_NETWORKS.items():
        config = AutoConfig.for_model(
            name, image_size=32, num_labels=3, initializer_range=0.2, **fields
        )
        model = AutoModel.from_config(config).eval()
        classifier = AutoModelForImageClassification.from_config(config).eval()
        backbone = AutoBackbone.from_config(
            AutoConfig.for_model(name, image_size=32, out_indices=[1], **fields)
        ).eval()
        for kind, module in (("model", model), ("classifier", classifier), ("backbone", backbone)):
            module.save_pretrained(root / name / kind)
        processor.save_pretrained(root / name / "model")
        export_small_run(name, root / name / "pretrained")
        pretrained = AutoModel.from_pretrained(root / name / "pretrained").eval()
        with torch.no_grad():
            regions = model(**pixels)
            expected |= {
                f"{name}.pixels": pixels["pixel_values"],
                f"{name}.regions": regions.last_hidden_state,
                f"{name}.logits": classifier(**pixels).logits,
                f"{name}.inside_classifier": classifier.network(**pixels).pooler_output,
                f"{name}.map": backbone(**pixels).feature_maps[0],
                f"{name}.pretrained": pretrained(**pixels).pooler_output,
                f"{name}.pipeline": regions.pooler_output,
            }
    run_without_the_package(root, json.dumps(list(SMALL_NETWORKS)))
    return root, expected, load_file(root / "results.safetensors")


def test_every_network_of_the_package_is_covered():
    assert {name for name in CONFIG_MAPPING if name.startswith("esvit_")} == set(SMALL_NETWORKS)


@pytest.mark.parametrize("name", SMALL_NETWORKS)
@pytest.mark.parametrize(
    "output", ["pixels", "regions", "logits", "inside_classifier", "map", "pretrained", "pipeline"]
)
def test_outputs_are_equal_bit_for_bit(traveled, name, output):
    _, expected, found = traveled
    assert torch.equal(found[f"{name}.{output}"], expected[f"{name}.{output}"])


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_the_other_process_ran_the_code_of_the_folder(traveled, name):
    root, _, _ = traveled
    places = json.loads((root / "places.json").read_text())[name]
    assert len(places) == 5
    assert all(place.startswith("transformers_modules.") for place in places)


def python_files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*.py")}


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_a_folder_carries_its_own_network_alone(traveled, name):
    root, _, _ = traveled
    network = COMMON_FILES | OWN_FILES[name]
    processor = {"image_processing_esvit.py"}
    for kind, files in (
        ("model", network | processor),
        ("classifier", network),
        ("backbone", network),
        ("pretrained", network | processor),
        ("saved_again", network | processor),
    ):
        assert python_files(root / name / kind) == files, kind
        source = Path(esvit_hf.__file__).parent / "models"
        for file in files:
            assert (root / name / kind / file).read_bytes() == (source / file).read_bytes()


@pytest.mark.parametrize("kind", ["model", "classifier", "backbone", "pretrained", "saved_again"])
@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_every_auto_class_is_listed(traveled, name, kind):
    folder = traveled[0] / name / kind
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map.keys() == AUTO_CLASSES.keys()
    for auto, reference in auto_map.items():
        module, _, class_name = reference.partition(".")
        assert (folder / f"{module}.py").is_file()
        registered = getattr(esvit_hf, class_name)
        if auto == "AutoConfig":
            assert registered is CONFIG_MAPPING[name]
        else:
            assert registered is AUTO_CLASSES[auto]._model_mapping[CONFIG_MAPPING[name]]
    if (processor_file := folder / "preprocessor_config.json").is_file():
        reference = "image_processing_esvit.EsvitImageProcessor"
        assert json.loads(processor_file.read_text())["auto_map"] == {
            "AutoImageProcessor": reference
        }


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_with_the_package_its_own_classes_win_without_a_question(traveled, name, monkeypatch):
    folder = traveled[0] / name / "model"
    monkeypatch.setattr(
        "builtins.input", lambda prompt: pytest.fail("asked for permission to run code")
    )
    for trust in ({}, {"trust_remote_code": True}):
        model = AutoModel.from_pretrained(folder, **trust)
        processor = AutoImageProcessor.from_pretrained(folder, **trust)
        assert type(model).__module__ == f"esvit_hf.models.modeling_{name}"
        assert type(processor) is esvit_hf.EsvitImageProcessor


def test_a_class_that_is_not_registered_does_not_pass_for_one_that_is(tmp_path):
    # FSDP puts such a class, made in a file of PyTorch, in front of the network's own.
    class Sharded(esvit_hf.EsvitSwinModel):
        pass

    config = esvit_hf.EsvitSwinConfig(image_size=32, **SMALL_NETWORKS["esvit_swin"])
    Sharded(config).save_pretrained(tmp_path)
    assert python_files(tmp_path) == {
        "configuration_esvit_common.py",
        "configuration_esvit_swin.py",
    }
    assert type(AutoModel.from_pretrained(tmp_path)) is esvit_hf.EsvitSwinModel
