"""`esvit correspond`, `esvit attention` and `esvit neighbors`: figures from a model's name and
image files.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from esvit_hf.common.arguments import flat_arguments
from esvit_hf.common.limits import check_least
from esvit_hf.common.options import Batches, DataSplit, FeatureCache, ModelSource

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["attention", "correspond", "neighbors"]


@flat_arguments
def correspond(
    model: ModelSource,
    first: str | Path,
    second: str | Path,
    *,
    output: str | Path,
    count: int = 10,
    layer: int | None = None,
    max_image_pixels: int = DataSplit.max_image_pixels,
) -> dict[str, Any]:
    """Join the regions of two images that look most alike to a vision model, by lines.

    The picture shows the images as they are. The last line of the output is a JSON object with the
    centers of the regions in pixels of the image files, and the cosine similarities.

    Args:
        first: image file.
        second: image file.
        output: picture to write, ending in .png or .pdf.
        count: number of lines.
        layer: hidden state whose regions are compared, 0 for the patch embeddings, -1 for the last;
            the regions behind the last norm if not given.

    Returns:
        The file and the pairs.

    Raises:
        ValueError: the model, its image processor, an image or a setting does not work; the message
            names the remedy.
    """
    from accelerate import Accelerator

    from esvit_hf.features.input_format import apply_processor, read_input_frame
    from esvit_hf.features.loading import load_network
    from esvit_hf.figures.correspondence import plot_region_pairs
    from esvit_hf.figures.look import check_picture_path
    from esvit_hf.regions.correspondence import find_region_pairs

    output = Path(output)
    check_picture_path(output)
    images = [_read_image(Path(path), max_image_pixels) for path in (first, second)]
    backbone, image_processor = load_network(model)
    backbone.to(Accelerator().device)
    inputs = [apply_processor(image_processor, [image]) for image in images]
    pairs = find_region_pairs(
        backbone,
        *(pixel_values.to(backbone.model.device) for pixel_values in inputs),
        count=count,
        layer=layer,
    )
    frames = [read_input_frame(image_processor, image.size) for image in images]
    starts = [frames[0].to_image(point) for point in pairs.first.tolist()]
    ends = [frames[1].to_image(point) for point in pairs.second.tolist()]
    similarities = pairs.similarity.tolist()
    plot_region_pairs(images[0], images[1], starts, ends, similarities).save(output)
    return {
        "output": str(output),
        "pairs": [
            {
                "first": start,
                "second": end,
                "similarity": round(similarity, 4),
            }
            for start, end, similarity in zip(starts, ends, similarities, strict=True)
        ],
    }


@flat_arguments
def attention(
    model: ModelSource,
    image: str | Path,
    *,
    query: str,
    output: str | Path,
    layer: int = -1,
    max_image_pixels: int = DataSplit.max_image_pixels,
) -> dict[str, Any]:
    """Plot where each attention head of a vision model looks from a point of an image.

    The picture shows what the network sees of the image.

    Args:
        image: image file.
        query: the point as x,y in pixels of the image file, counted from its upper left corner.
        output: picture to write, ending in .png or .pdf.
        layer: number of the block, from 0; -1 for the last.

    Returns:
        The file, and for each head the share of its attention that went to regions of the image.

    Raises:
        ValueError: the model, its image processor, the image, the point or a setting does not work;
            the message names the remedy.
    """
    from accelerate import Accelerator

    from esvit_hf.features.input_format import apply_processor, read_input_format, read_input_frame
    from esvit_hf.features.loading import load_network
    from esvit_hf.figures.attention import plot_attention
    from esvit_hf.figures.look import check_picture_path
    from esvit_hf.regions.attention import query_attention

    output = Path(output)
    check_picture_path(output)
    x, y = _read_point(query)
    picture = _read_image(Path(image), max_image_pixels)
    if not (0 <= x < picture.width and 0 <= y < picture.height):
        raise ValueError(
            f"--query {query} lies outside {image}, which has {picture.width} x {picture.height} "
            f"pixels"
        )
    backbone, image_processor = load_network(model)
    backbone.to(Accelerator().device)
    frame = read_input_frame(image_processor, picture.size)
    point = frame.to_input((x, y))
    if point is None:
        left, top = frame.to_image((0, 0))
        right, bottom = frame.to_image(frame.size)
        raise ValueError(
            f"--query {query} lies outside what the image processor keeps of {image}: choose x "
            f"from {left:.0f} to {right:.0f} and y from {top:.0f} to {bottom:.0f}"
        )
    pixel_values = apply_processor(image_processor, [picture])
    seen = query_attention(backbone, pixel_values.to(backbone.model.device), point, layer)
    shown = read_input_format(image_processor).restore(pixel_values)[0]
    plot_attention(shown, seen.maps, seen.stride, point).save(output)
    shares = seen.maps.sum(dim=(1, 2)).tolist()
    return {"output": str(output), "attention_on_image": [round(share, 4) for share in shares]}


@flat_arguments
def neighbors(
    model: ModelSource,
    image: str | Path,
    data: DataSplit,
    *,
    output: str | Path,
    count: int | None = None,
    batches: Batches,
    cache: FeatureCache,
) -> dict[str, Any]:
    """Plot the images of a data set whose view features are most similar to those of an image.

    Features of the data set are computed once and kept. The last line of the output is a JSON
    object with the places of the images in the data set, their names with the paths of their files,
    their classes and the cosine similarities.

    Args:
        image: image file.
        output: picture to write, ending in .png or .pdf.
        count: number of neighbors; 9 if not given, or all images if there are fewer.

    Returns:
        The file and the neighbors.

    Raises:
        ValueError: the model, its image processor, the data, the image or a setting does not work;
            the message names the remedy.
    """
    from accelerate import Accelerator

    from esvit_hf.features.loading import load_images, open_store
    from esvit_hf.features.neighbors import nearest_images, view_feature
    from esvit_hf.figures.look import check_picture_path
    from esvit_hf.figures.neighbors import plot_neighbors

    output = Path(output)
    check_picture_path(output)
    picture = _read_image(Path(image), data.max_image_pixels)
    store = open_store(model, batches, cache, Accelerator())
    source = load_images(data)
    if count is None:
        count = min(9, len(source))
    if not 1 <= count <= len(source):
        raise ValueError(
            f"--count is {count}: choose 1 to {len(source)}, the number of images in {data.dataset}"
        )
    features = store.features(source)
    found = nearest_images(
        view_feature(store.backbone, store.processor, picture), source, features, count
    )
    plot_neighbors(
        picture,
        [neighbor.image for neighbor in found],
        [neighbor.label for neighbor in found],
        [neighbor.cosine for neighbor in found],
    ).save(output)
    return {
        "output": str(output),
        "neighbors": [
            {
                "index": near.index,
                "name": near.name,
                "class": near.class_name,
                "cosine": round(near.cosine, 4),
            }
            for near in found
        ],
    }


def _read_image(path: Path, max_image_pixels: int) -> "Image.Image":
    from esvit_hf.data.decoding import UndecodableImageError, decode_image

    check_least(max_image_pixels=(max_image_pixels, 1))
    if not path.is_file():
        raise ValueError(f"there is no image file {str(path)!r}: give the path of one")
    try:
        return decode_image(path, max_image_pixels=max_image_pixels)
    except UndecodableImageError as error:
        raise ValueError(
            f"{path} cannot be used ({error}): give a whole image, or a higher --max_image_pixels"
        ) from error


def _read_point(query: str) -> tuple[float, float]:
    try:
        x, y = (float(number) for number in query.split(","))
    except ValueError as error:
        raise ValueError(
            f"--query is {query!r}: give a point as x,y in pixels, for example 120,80"
        ) from error
    return x, y
