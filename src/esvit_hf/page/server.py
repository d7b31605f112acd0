"""The server of the page: its files, and the explorer's answers as JSON."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from esvit_hf.page.explorer import Explorer
from esvit_hf.page.pictures import (
    MAX_UPLOAD_MEGABYTES,
    PHOTOGRAPHS,
    encode_picture,
    read_upload,
)

__all__ = ["build_app", "serve_page"]

STATIC = Path(__file__).parent / "static"

# A page of this server loads nothing from elsewhere, and other pages do not frame it, but a Space.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; "
        "frame-ancestors 'self' https://huggingface.co https://*.hf.space"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def build_app(explorer: Explorer) -> Starlette:
    """Build the page's server.

    Args:
        explorer: what answers.

    Returns:
        The application, for any ASGI server.
    """
    answers = _Answers(explorer)
    return Starlette(
        routes=[
            Route("/", _page),
            Route("/setup", answers.setup),
            Route("/samples/{place:int}", answers.sample),
            Route("/picture", answers.picture, methods=["POST"]),
            Route("/regions", answers.regions, methods=["POST"]),
            Route("/attention", answers.attention, methods=["POST"]),
            Route("/neighbors", answers.neighbors, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
            Mount("/photographs", StaticFiles(directory=PHOTOGRAPHS)),
        ],
        exception_handlers={ValueError: _refuse},
    )


def serve_page(explorer: Explorer, *, host: str, port: int) -> None:
    """Serve the page until it is interrupted.

    Args:
        explorer: what answers.
        host: address to listen at; 127.0.0.1 for visitors on this machine alone.
        port: port to listen at.

    Raises:
        ValueError: the port is taken, or the address is not one of this machine.
    """
    try:
        listening = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cannot listen at {host}:{port} ({error}): choose another --host or --port"
        ) from error
    print(f"the page is at http://{host}:{port}; Ctrl-C stops it", flush=True)
    server = uvicorn.Server(uvicorn.Config(build_app(explorer), log_level="warning"))
    with listening:
        asyncio.run(server.serve(sockets=[listening]))


class _Answers:
    """Requests to calls of the explorer, in threads beside the server's own."""

    def __init__(self, explorer: Explorer):
        self.explorer = explorer

    async def setup(self, request: Request) -> Response:
        return JSONResponse(self.explorer.setup())

    async def sample(self, request: Request) -> Response:
        content, media_type = await run_in_threadpool(
            self.explorer.sample, request.path_params["place"]
        )
        return Response(content, media_type=media_type)

    async def picture(self, request: Request) -> Response:
        upload = await _body(request)
        content, media_type = await run_in_threadpool(lambda: encode_picture(read_upload(upload)))
        return Response(content, media_type=media_type)

    async def regions(self, request: Request) -> Response:
        network, rows = _number(request, "network", int), _number(request, "rows", int)
        return JSONResponse(
            await run_in_threadpool(self.explorer.regions, network, rows, await _body(request))
        )

    async def attention(self, request: Request) -> Response:
        network, rows, block = (
            _number(request, name, int) for name in ("network", "rows", "block")
        )
        place = _number(request, "x", float), _number(request, "y", float)
        picture = await _body(request)
        return JSONResponse(
            await run_in_threadpool(self.explorer.attention, network, rows, picture, place, block)
        )

    async def neighbors(self, request: Request) -> Response:
        network = _number(request, "network", int)
        return JSONResponse(
            await run_in_threadpool(self.explorer.neighbors, network, await _body(request))
        )


async def _page(request: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers=_HEADERS)


async def _refuse(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400)


async def _body(request: Request) -> bytes:
    """Read what was sent, up to the limit of uploads."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_UPLOAD_MEGABYTES * 2**20:
            raise ValueError(
                f"The file is too large: choose one of at most {MAX_UPLOAD_MEGABYTES} MB."
            )
    return bytes(content)


def _number(request: Request, name: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(request.query_params[name])
    except (KeyError, ValueError) as error:
        raise ValueError(f"The request needs a number {name!r}.") from error
