"""The networks are known to the Auto classes, whoever imports what first, in new processes too."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

from transformers import AutoModel

from esvit_hf import EsvitSwinConfig, EsvitSwinModel

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
# To look for garbage meanwhile takes a quarter of the time.
IN_ANY_ORDER = f"""
import gc, os, sys
gc.disable()
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


def test_imports_in_any_order() -> None:
    said = subprocess.check_output([sys.executable, "-c", IN_ANY_ORDER], text=True)
    assert said.splitlines() == list(FIRST)


def load_in_a_new_process(folder: str) -> str:
    return type(AutoModel.from_pretrained(folder)).__name__


def test_new_processes_know_them_too(tmp_path: Path) -> None:
    config = EsvitSwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1], window_size=4)
    EsvitSwinModel(config).save_pretrained(tmp_path)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(load_in_a_new_process, (str(tmp_path),)) == "EsvitSwinModel"
