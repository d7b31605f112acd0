"""The page itself: what visitors see and touch, and which of their actions asks the explorer for
what.
"""

import functools
import html
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from esvit_hf.page.explorer import Explorer, View
from esvit_hf.page.pictures import MAX_UPLOAD_MEGABYTES, marked_picture, point_of_click, read_upload
from esvit_hf.regions.similarity import RegionMatch

__all__ = ["build_page", "serve_page"]

MEAN = "mean of all heads"
DETAILS = {"as trained": 1, "2x finer": 2, "3x finer": 3}
IMAGE_FORMATS = [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"]

INTRODUCTION = """# What does {name} see?

The network divides an image into regions and describes each by a vector. Choose two images, then
click a point of image 1, or set it with the sliders: the page compares its region with all others.
"""
STYLE = """
.gradio-container {
    width: 100% !important; max-width: 1100px !important; margin: 0 auto !important;
}
.image-container { padding-top: 30px; }
.refused {
    border: 2px solid #b00020; border-radius: 6px; padding: 10px 14px; color: #b00020;
    background: #fff2f4;
}
#picture-1 img { cursor: crosshair; }
"""
# Uploads are removed after this many seconds.
KEPT_SECONDS = 3600

Update = dict[Any, Any]


def build_page(explorer: Explorer, name: str) -> gr.Blocks:
    """Build the page.

    Args:
        explorer: what it shows.
        name: what to call the model.

    Returns:
        The page, for `serve_page`.
    """
    return _Page(explorer, name).blocks


def serve_page(page: gr.Blocks, *, host: str, port: int, wait: bool = True) -> None:
    """Serve the page until it is interrupted.

    Files on this machine stay private, and nothing is sent to others: no share link, no statistics.

    Args:
        page: from `build_page`.
        host: address to listen at; 127.0.0.1 for visitors on this machine alone.
        port: port to listen at.
        wait: return only when the server is stopped.

    Raises:
        ValueError: the port is taken.
    """
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            quiet=True,
            footer_links=[],
            max_file_size=MAX_UPLOAD_MEGABYTES * 2**20,
            css=STYLE,
            prevent_thread_lock=not wait,
        )
    except OSError as error:
        raise ValueError(
            f"cannot listen at {host}:{port}: choose another --host or --port"
        ) from error


class _Page:
    """Components and the actions on them; an action returns new values for some of the
    components.
    """

    def __init__(self, explorer: Explorer, name: str):
        self.explorer = explorer
        self.labels = [label for label, _ in explorer.examples]
        self.views: list[gr.State] = []
        self.pictures: list[gr.Image] = []
        self.choices: list[gr.Dropdown] = []
        self.uploads: list[gr.UploadButton] = []
        with gr.Blocks(
            title=f"What does {name} see?",
            analytics_enabled=False,
            delete_cache=(KEPT_SECONDS, KEPT_SECONDS),
        ) as self.blocks:
            gr.Markdown(INTRODUCTION.format(name=name))
            self.message = gr.HTML(elem_id="message")
            with gr.Row():
                for number in (1, 2):
                    with gr.Column(min_width=300):
                        self._add_image(number)
            with gr.Row():
                self.x, self.y = (
                    gr.Slider(
                        0,
                        1,
                        0,
                        step=1,
                        precision=0,
                        label=f"Point {axis}",
                        buttons=[],
                        min_width=260,
                        elem_id=axis[0],
                    )
                    for axis in ("x, pixels from the left", "y, pixels from the top")
                )
                self.detail = gr.Radio(
                    list(DETAILS),
                    value=list(DETAILS)[0],
                    label="Regions",
                    min_width=260,
                    elem_id="detail",
                )
            self._add_results()
            self._connect()

    def _add_image(self, number: int) -> None:
        self.views.append(gr.State())
        hint = "click a point" if number == 1 else "compared with image 1"
        self.pictures.append(_picture(f"Image {number}: {hint}", f"picture-{number}"))
        self.choices.append(
            gr.Dropdown(
                self.labels, label=f"Example for image {number}", elem_id=f"example-{number}"
            )
        )
        self.uploads.append(
            gr.UploadButton(
                f"Upload image {number} (at most {MAX_UPLOAD_MEGABYTES} MB)",
                file_types=IMAGE_FORMATS,
                size="md",
                elem_id=f"upload-{number}",
            )
        )

    def _add_results(self) -> None:
        heads = self.explorer.heads
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Similar regions"):
                self.words = gr.HTML(elem_id="words")
                with gr.Row():
                    self.maps = [
                        _picture(f"Similarity in image {number}", f"map-{number}")
                        for number in (1, 2)
                    ]
            with gr.Tab("Best pairs"):
                self.pairs = _picture("Regions of both images that look most alike", "pairs")
            with gr.Tab("Attention"):
                if not heads:
                    gr.Markdown("This network reports no attention.")
                with gr.Row(visible=bool(heads)):
                    blocks = [str(number) for number in range(1, len(heads) + 1)]
                    self.layer = gr.Dropdown(
                        blocks, value=blocks[-1] if blocks else None, label="Block", elem_id="layer"
                    )
                    self.head = gr.Dropdown(
                        _head_choices(heads, -1), value=MEAN, label="Head", elem_id="head"
                    )
                self.attention = _picture(
                    "Where the region at the point looks", "attention", visible=bool(heads)
                )
            with gr.Tab("Region colors"):
                gr.Markdown(
                    "Regions of one color resemble each other: three principal components as red, "
                    "green, blue."
                )
                with gr.Row():
                    self.colors = [
                        _picture(f"Regions of image {number}", f"colors-{number}")
                        for number in (1, 2)
                    ]
            with gr.Tab("Nearest images", visible=self.explorer.dataset is not None):
                self.neighbors = _picture(
                    "Images of the data set that resemble image 1", "neighbors"
                )

    def _connect(self) -> None:
        controls = [*self.views, self.x, self.y, self.detail, self.layer, self.head]
        shown = [
            *self.pictures,
            self.words,
            *self.maps,
            self.pairs,
            *self.colors,
            self.neighbors,
            self.attention,
        ]
        options: dict[str, Any] = {
            "outputs": [
                self.message,
                *self.views,
                *self.choices,
                self.x,
                self.y,
                self.layer,
                self.head,
                *shown,
            ],
            # The page's own events are no interface for other programs.
            "api_visibility": "private",
            "show_progress": "minimal",
        }
        self.blocks.load(_guarded(self._start, self.message), controls, **options)
        self.pictures[0].select(_guarded(self._click, self.message), controls, **options)
        for index in (0, 1):
            choose, upload = (
                functools.partial(action, index) for action in (self._choose, self._upload)
            )
            self.choices[index].input(
                _guarded(choose, self.message), [self.choices[index], *controls], **options
            )
            self.uploads[index].upload(
                _guarded(upload, self.message), [self.uploads[index], *controls], **options
            )
        for slider in (self.x, self.y):
            # No change event: it would follow every click and draw all again.
            slider.input(
                _guarded(self._point, self.message), controls, trigger_mode="always_last", **options
            )
        self.detail.input(_guarded(self._refine, self.message), controls, **options)
        self.layer.input(_guarded(self._change_layer, self.message), controls, **options)
        self.head.input(_guarded(self._attend, self.message), controls, **options)

    def _start(
        self, first: None, second: None, x: int, y: int, detail: str, layer: str | None, head: str
    ) -> Update:
        labels = [self.labels[0], self.labels[min(1, len(self.labels) - 1)]]
        views = [
            self.explorer.view(self.explorer.example(label), DETAILS[detail]) for label in labels
        ]
        return {
            **dict(zip(self.choices, labels, strict=True)),
            **self._show(views[0], views[1], _center(views[0].image), layer, head),
        }

    def _choose(self, index: int, label: str, *controls: Any) -> Update:
        return self._replace(index, self.explorer.example(label), *controls)

    def _upload(self, index: int, path: str, *controls: Any) -> Update:
        return {self.choices[index]: None, **self._replace(index, read_upload(path), *controls)}

    def _replace(
        self,
        index: int,
        image: Image.Image,
        first: View,
        second: View,
        x: int,
        y: int,
        detail: str,
        layer: str | None,
        head: str,
    ) -> Update:
        view = self.explorer.view(image, DETAILS[detail])
        if index == 0:
            return self._show(view, second, _center(image), layer, head)
        return self._show(first, view, (x, y), layer, head)

    def _refine(
        self, first: View, second: View, x: int, y: int, detail: str, layer: str | None, head: str
    ) -> Update:
        views = [self.explorer.view(view.image, DETAILS[detail]) for view in (first, second)]
        return self._show(views[0], views[1], (x, y), layer, head)

    def _click(
        self,
        event: gr.SelectData,
        first: View,
        second: View,
        x: int,
        y: int,
        detail: str,
        layer: str | None,
        head: str,
    ) -> Update:
        point = point_of_click((event.index[0], event.index[1]), first.image.size)
        return {
            self.x: point[0],
            self.y: point[1],
            **self._show_point(first, second, point, layer, head),
        }

    def _point(
        self, first: View, second: View, x: int, y: int, detail: str, layer: str | None, head: str
    ) -> Update:
        return self._show_point(first, second, (x, y), layer, head)

    def _attend(
        self, first: View, second: View, x: int, y: int, detail: str, layer: str | None, head: str
    ) -> Update:
        return self._show_attention(first, (x, y), layer, head)

    def _change_layer(
        self, first: View, second: View, x: int, y: int, detail: str, layer: str, head: str
    ) -> Update:
        heads = _head_choices(self.explorer.heads, int(layer) - 1)
        return {
            self.head: gr.Dropdown(heads, value=MEAN),
            **self._show_attention(first, (x, y), layer, MEAN),
        }

    def _show(
        self, first: View, second: View, point: tuple[int, int], layer: str | None, head: str
    ) -> Update:
        """Everything about two images."""
        update: Update = {
            self.x: gr.Slider(maximum=first.image.width - 1, value=point[0]),
            self.y: gr.Slider(maximum=first.image.height - 1, value=point[1]),
            self.pictures[1]: marked_picture(second.image),
            self.pairs: self.explorer.pairs(first, second),
            **dict(zip(self.views, (first, second), strict=True)),
            **dict(zip(self.colors, self.explorer.colors(first, second), strict=True)),
            **self._show_point(first, second, point, layer, head),
        }
        if self.explorer.dataset is not None:
            update[self.neighbors] = self.explorer.neighbors(first)
        return update

    def _show_point(
        self, first: View, second: View, point: tuple[int, int], layer: str | None, head: str
    ) -> Update:
        own, other, matches = self.explorer.similarity(first, second, point)
        return {
            self.pictures[0]: marked_picture(first.image, point, first.regions.grid),
            self.maps[0]: own,
            self.maps[1]: other,
            self.words: _describe(point, matches),
            **self._show_attention(first, point, layer, head),
        }

    def _show_attention(
        self, first: View, point: tuple[int, int], layer: str | None, head: str
    ) -> Update:
        if layer is None:
            return {}
        number = None if head == MEAN else int(head) - 1
        return {self.attention: self.explorer.attention(first, point, int(layer) - 1, number)}


def _picture(label: str, name: str, *, visible: bool = True) -> gr.Image:
    return gr.Image(
        label=label,
        alt_text=label,
        type="pil",
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        visible=visible,
        elem_id=name,
    )


def _guarded(action: Callable[..., Update], message: gr.HTML) -> Callable[..., Update]:
    """Show what a visitor can correct in the page, and clear the message of the action before."""

    @functools.wraps(action)
    def guarded(*values: Any) -> Update:
        try:
            return {message: "", **action(*values)}
        except ValueError as error:
            return {message: f'<p role="alert" class="refused">{html.escape(str(error))}</p>'}

    return guarded


def _head_choices(heads: Sequence[int], layer: int) -> list[str]:
    return [MEAN, *(str(number) for number in range(1, heads[layer] + 1))] if heads else [MEAN]


def _center(image: Image.Image) -> tuple[int, int]:
    return image.width // 2, image.height // 2


def _describe(point: tuple[int, int], matches: Sequence[RegionMatch]) -> str:
    """The matches in words, for those who do not see the pictures."""
    places = "; ".join(
        f"{number}. around ({match.point[0]:.0f}, {match.point[1]:.0f}), cosine {match.cosine:.2f}"
        for number, match in enumerate(matches, start=1)
    )
    return (
        f'<p role="status">Point ({point[0]}, {point[1]}) of image 1. '
        f"Most similar in image 2: {places}.</p>"
    )
