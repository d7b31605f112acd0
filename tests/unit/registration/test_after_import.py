"""The networks are known to the Auto classes, whoever imports what first."""

import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

from transformers import AutoModel

import esvit_hf
from esvit_hf import EsvitCvtModel, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.registration.families import network_modules

FIRST = (
    "import esvit_hf",
    "import transformers; import esvit_hf",
    "from esvit_hf.models.configuration_esvit_cvt import EsvitCvtConfig",
    "import esvit_hf.models.modeling_esvit_vil",
    "import esvit_hf, importlib.resources; importlib.resources.files('transformers')",
    "import esvit_hf, threading; thread = threading.Thread(target=__import__, "
    "args=('transformers',)); thread.start(); thread.join()",
)
CHECK = """
from transformers import AutoBackbone, AutoConfig, AutoModel
for kind in ("esvit_swin", "esvit_vil", "esvit_cvt"):
    for auto in (AutoBackbone, AutoModel):
        assert type(AutoConfig.for_model(kind)) in auto._model_mapping, kind
"""
# Each in a process of its own that has neither package yet, but what takes longest of the rest.
IN_ANY_ORDER = f"""
import os, sys
import accelerate, jinja2.ext, scipy.optimize, tokenizers, torchvision.transforms.v2
import huggingface_hub.hf_api, huggingface_hub.repocard, huggingface_hub.serialization
import torch.distributed.checkpoint.state_dict, torch.distributed.fsdp
import torch.nn.attention.flex_attention
for program in {FIRST!r}:
    if os.fork() == 0:
        assert not {{"esvit_hf", "transformers"}} & set(sys.modules)
        exec(program + {CHECK!r})
        print(program, flush=True)
        os._exit(0)
    os.wait()
"""


def run(program: str) -> str:
    return subprocess.check_output([sys.executable, "-c", program], text=True)


def test_imports_in_any_order() -> None:
    assert run(IN_ANY_ORDER).splitlines() == list(FIRST)


def test_the_package_alone_imports_nothing_heavy() -> None:
    run(
        "import esvit_hf, sys; dir(esvit_hf); esvit_hf.__version__; "
        "assert not {'torch', 'transformers', 'jsonargparse'} & set(sys.modules)"
    )


def test_asking_whether_transformers_is_there_imports_nothing() -> None:
    run(
        "import esvit_hf, importlib.util, sys; spec = importlib.util.find_spec('transformers')\n"
        "assert type(spec.loader).__name__ == 'SourceFileLoader' and 'torch' not in sys.modules"
    )


def test_a_transformers_that_is_missing_stays_missing() -> None:
    program = (
        "import sys; sys.path = [path for path in sys.path if 'site-packages' not in path]\n"
        f"sys.path.append({str(Path(esvit_hf.__file__).parents[1])!r})\n"
        "import esvit_hf\n"
        "try:\n    import transformers\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    )
    assert run(program) == "transformers\n"


def load_in_a_new_process(folder: str) -> str:
    return type(AutoModel.from_pretrained(folder)).__name__


def test_new_processes_know_them_too(tmp_path: Path) -> None:
    config = EsvitSwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1], window_size=4)
    EsvitSwinModel(config).save_pretrained(tmp_path)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(load_in_a_new_process, (str(tmp_path),)) == "EsvitSwinModel"


def test_classes_and_networks_are_pickled() -> None:
    assert pickle.loads(pickle.dumps(EsvitCvtModel)) is EsvitCvtModel
    config = EsvitSwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1], window_size=4)
    copy = pickle.loads(pickle.dumps(EsvitSwinModel(config)))
    assert type(copy) is EsvitSwinModel and copy.config == config


def test_every_class_is_where_it_is_said_to_be() -> None:
    for name, module in network_modules().items():
        assert getattr(esvit_hf, name).__module__ == module
