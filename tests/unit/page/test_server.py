"""The page's server; the command and the Space up to it."""

import importlib.util
import socket
import sys
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient
from tests.support.paths import ROOT

from esvit_hf.commands.main import main
from esvit_hf.features.store import FeatureStore
from esvit_hf.page.explorer import Explorer
from esvit_hf.page.network import page_networks
from esvit_hf.page.pictures import PHOTOGRAPHS
from esvit_hf.page.server import STATIC, build_app, serve_page

CAT = (PHOTOGRAPHS / "cat.jpg").read_bytes()


@pytest.fixture
def client(store: FeatureStore) -> Iterator[TestClient]:
    with TestClient(build_app(Explorer(page_networks([store])))) as client:
        yield client


def test_the_page_and_its_files(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for file in STATIC.iterdir():
        assert client.get(f"/static/{file.name}").content == file.read_bytes()
    assert client.get("/photographs/cat.jpg").content == CAT


def test_scripts_and_pages_name_no_other_address() -> None:
    for file in STATIC.iterdir():
        text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "http" not in text, file


def test_answers(client: TestClient) -> None:
    assert client.get("/setup").json()["default_rows"] == 16
    answer = client.post("/regions?network=1&rows=16", content=CAT).json()
    assert answer["grid"] == [16, 24]
    answer = client.post("/attention?network=0&rows=16&x=0.2&y=0.3&block=2", content=CAT).json()
    assert answer["count"] == 2
    picture = client.post("/picture", content=CAT)
    assert picture.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("/picture", b"no image", "cannot be read as an image"),
        ("/picture", bytes(11 * 2**20), "too large: choose one of at most 10 MB"),
        ("/regions?network=0", CAT, "needs a number 'rows'"),
        ("/regions?network=0&rows=x", CAT, "needs a number 'rows'"),
        ("/regions?network=7&rows=16", CAT, "There is no network 7"),
        ("/attention?network=0&rows=16&x=nan&y=0.5&block=0", CAT, "outside"),
        ("/attention?network=0&rows=16&x=0.5&y=0.5&block=9", CAT, "block 9 asked for"),
        ("/neighbors?network=0", CAT, "start the page with --dataset"),
    ],
)
def test_refusals(path: str, content: bytes, message: str, client: TestClient) -> None:
    answer = client.post(path, content=content)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/photographs/%2e%2e%2fserver.py",
        "/photographs//etc/hostname",
        "/samples/0/../../setup.cfg",
        "/docs",
    ],
)
def test_files_of_this_machine_stay_private(path: str, client: TestClient) -> None:
    assert client.get(path).status_code == 404


def test_a_port_that_is_taken(store: FeatureStore) -> None:
    explorer = Explorer(page_networks([store]))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1:{port}"):
            serve_page(explorer, host="127.0.0.1", port=port)


def test_without_starlette(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.delitem(sys.modules, "esvit_hf.page.server", raising=False)
    assert main(["demo", "any/model"]) == 2
    assert "pip install 'esvit-hf[demo]'" in capsys.readouterr().err


def test_the_space_names_the_missing_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("space", ROOT / "examples" / "space" / "app.py")
    assert spec is not None and spec.loader is not None
    space = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(space)
    monkeypatch.delenv("ESVIT_MODEL", raising=False)
    with pytest.raises(ValueError, match="ESVIT_MODEL is not set"):
        space.main()
    called: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(
        space, "show_page", lambda model, **options: called.append((model, options))
    )
    monkeypatch.setenv("ESVIT_MODEL", "some/model")
    monkeypatch.setenv("ESVIT_COMPARE", "other/model")
    space.main()
    options = {"compare": "other/model", "dataset": None, "split": "train", "host": "0.0.0.0"}
    assert called == [("some/model", options)]
