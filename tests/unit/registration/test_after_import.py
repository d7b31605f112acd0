"""What importing the package does, and where its classes are then."""

import pickle
import subprocess
import sys
from pathlib import Path

import esvit_hf
from esvit_hf import EsvitCvtModel, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.registration.families import network_modules


def run(program: str) -> str:
    return subprocess.check_output([sys.executable, "-c", program], text=True)


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


def test_classes_and_networks_are_pickled() -> None:
    assert pickle.loads(pickle.dumps(EsvitCvtModel)) is EsvitCvtModel
    config = EsvitSwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1], window_size=4)
    copy = pickle.loads(pickle.dumps(EsvitSwinModel(config)))
    assert type(copy) is EsvitSwinModel and copy.config == config


def test_every_class_is_where_it_is_said_to_be() -> None:
    for name, module in network_modules().items():
        assert getattr(esvit_hf, name).__module__ == module
