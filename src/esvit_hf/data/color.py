"""Color augmentation on the device: jitter, grayscale, blur, solarize and normalize whole batches.

The random parameters are drawn in the data workers (:class:`ColorSample`) and travel with the batch
as a few tensors (:class:`ColorParameters`), so that nothing here waits for the device.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SOLARIZE_THRESHOLD = 128
# ITU-R 601-2, with the rounding of Pillow's conversion to grayscale.
LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
JITTER_ORDERS = tuple(itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)))
NO_JITTER = -1
NUM_SLOTS = 3
NUM_COLORS = 3


class ColorSample(NamedTuple):
    """The color operations on one crop.

    Attributes:
        order: index into ``JITTER_ORDERS``, the order of the four jitter operations, or
            ``NO_JITTER``.
        brightness: factor; 1 changes nothing.
        contrast: factor; 1 changes nothing.
        saturation: factor; 1 changes nothing.
        hue: rotation in turns, -0.5 to 0.5; 0 changes nothing.
        grayscale: whether to remove the colors.
        blur_sigma: standard deviation of the Gaussian blur in pixels, 0 for none.
        solarize: whether to invert values from ``SOLARIZE_THRESHOLD`` on.
    """

    order: int = NO_JITTER
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grayscale: bool = False
    blur_sigma: float = 0.0
    solarize: bool = False


class ColorPlan(NamedTuple):
    """What the host knows about the parameters of a batch, so that it never has to ask the device.

    Attributes:
        hue_bounds: crops sorted by the place of hue in their jitter order: the first one that is
            jittered at all (hue first), then the first one with hue second, third, last.
        active_slots: which of the three operations before and the three after the hue rotation
            change anything.
        hue: whether any crop's hue is rotated.
        num_grayscale: crops to make grayscale.
        num_blurred: crops to blur.
        num_solarized: crops to solarize.
        gray_images: all images of the batch are grayscale (R = G = B), so one channel stands for
            all three.
    """

    hue_bounds: tuple[int, int, int, int]
    active_slots: tuple[bool, ...]
    hue: bool
    num_grayscale: int
    num_blurred: int
    num_solarized: int
    gray_images: bool


class ColorParameters(NamedTuple):
    """The color operations on a batch of B crops.

    Places count the crops sorted by the place of hue in each crop's jitter order.

    Attributes:
        sorting: (B,) int64, the crop at each place.
        places: (B,) int64, the place of each crop.
        grayscale: (B,) int64, places to make grayscale; filled up with zeros that are not read.
        blurred: (B,) int64, places to blur; filled up in the same way.
        solarized: (B,) int64, places to solarize; filled up in the same way.
        coefficients: (6, 3, B) float32 by place: for each of six slots, three before the hue
            rotation and three after it, the factor of the pixel, of its gray value and of the
            crop's mean gray value.
        hue: (B,) float32 by place, rotation in sextants.
        blur_sigma: (B,) float32, standard deviation for each of `blurred`.
        plan: what the host knows.
    """

    sorting: Tensor
    places: Tensor
    grayscale: Tensor
    blurred: Tensor
    solarized: Tensor
    coefficients: Tensor
    hue: Tensor
    blur_sigma: Tensor
    plan: ColorPlan


PARAMETER_LAYOUT: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "sorting": (torch.int64, ()),
    "places": (torch.int64, ()),
    "grayscale": (torch.int64, ()),
    "blurred": (torch.int64, ()),
    "solarized": (torch.int64, ()),
    "coefficients": (torch.float32, (2 * NUM_SLOTS, 3)),
    "hue": (torch.float32, ()),
    "blur_sigma": (torch.float32, ()),
}
"""Type and shape of each tensor of :class:`ColorParameters`, without the last dimension B."""


def _slot_operations() -> np.ndarray:
    """For each jitter order (the last row: no jitter), the operation in each slot; hue's number
    means none.
    """
    table = np.full((len(JITTER_ORDERS) + 1, 2 * NUM_SLOTS), HUE)
    for row, order in enumerate(JITTER_ORDERS):
        place = order.index(HUE)
        table[row, :place] = order[:place]
        table[row, NUM_SLOTS : 2 * NUM_SLOTS - place] = order[place + 1 :]
    return table


SLOT_OPERATIONS = _slot_operations()
HUE_PLACES = np.array([order.index(HUE) for order in JITTER_ORDERS] + [NO_JITTER])


def pack_color_samples(
    samples: Sequence[ColorSample], *, gray_images: bool = False
) -> ColorParameters:
    """Arrange the color operations of a batch for :func:`augment`.

    Brightness, contrast and saturation are each ``clamp(a * pixel + g * gray + m * mean gray)``.
    Crops are sorted by the place of hue in their order: the operations before hue, hue, and those
    after it then each cover a contiguous range of crops, and crops with different orders go through
    the same few kernels.

    Args:
        samples: one a crop.
        gray_images: all images of the batch are grayscale (R = G = B).

    Returns:
        The parameters, on the CPU.
    """
    values = np.array(samples, dtype=np.float64).reshape(len(samples), len(ColorSample._fields))
    order, brightness, contrast, saturation, hue, grayscale, sigma, solarize = values.T
    order = order.astype(np.int64)
    sorting = np.argsort(HUE_PLACES[order], kind="stable")
    bounds = np.searchsorted(HUE_PLACES[order][sorting], range(4))

    coefficients = np.zeros((len(samples), 4, 3))
    coefficients[:, :, 0] = 1
    coefficients[:, BRIGHTNESS, 0] = brightness
    coefficients[:, CONTRAST, 0], coefficients[:, CONTRAST, 2] = contrast, 1 - contrast
    coefficients[:, SATURATION, 0], coefficients[:, SATURATION, 1] = saturation, 1 - saturation
    slots = np.take_along_axis(coefficients, SLOT_OPERATIONS[order][:, :, None], axis=1)[sorting]
    hue = np.where(order == NO_JITTER, 0, hue)[sorting]

    chosen = [np.flatnonzero(flag[sorting]) for flag in (grayscale, sigma, solarize)]
    plan = ColorPlan(
        hue_bounds=(int(bounds[0]), int(bounds[1]), int(bounds[2]), int(bounds[3])),
        active_slots=tuple((slots != (1.0, 0.0, 0.0)).any(axis=(0, 2)).tolist()),
        hue=bool(hue.any()),
        num_grayscale=len(chosen[0]),
        num_blurred=len(chosen[1]),
        num_solarized=len(chosen[2]),
        gray_images=gray_images,
    )
    return ColorParameters(
        sorting=torch.from_numpy(sorting),
        places=torch.from_numpy(np.argsort(sorting)),
        grayscale=_pad_with_zeros(chosen[0], len(samples)),
        blurred=_pad_with_zeros(chosen[1], len(samples)),
        solarized=_pad_with_zeros(chosen[2], len(samples)),
        coefficients=torch.from_numpy(slots.transpose(1, 2, 0).astype(np.float32)),
        hue=torch.from_numpy((6 * hue).astype(np.float32)),
        blur_sigma=_pad_with_zeros(sigma[sorting][chosen[1]].astype(np.float32), len(samples)),
        plan=plan,
    )


@torch.no_grad()
def augment(
    crops: Tensor,
    parameters: ColorParameters,
    dtype: torch.dtype = torch.float32,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Apply the color operations to a batch of crops and normalize it.

    The order is color jitter, grayscale, blur, solarize, normalize. The arithmetic is float32
    whatever `dtype` and autocast say; values are clamped but not rounded between operations. With
    the same parameters, the difference from torchvision on Pillow images is at most 1.5 of 255 for
    brightness, contrast and saturation in the paper's ranges (Pillow rounds down), 0.5 for
    grayscale, 0 for solarize, and 16 for hue (Pillow keeps hue and saturation in 8 bits and rounds
    both down; from torchvision on float tensors only rounding error remains); for blur it is below
    2 on average, because this is a true Gaussian where Pillow's is three box filters of the same
    total variance.

    Of images that have not three channels, saturation, hue and grayscale are left out: they are
    about colors. The rest is done to all channels alike, contrast around their common mean.

    Args:
        crops: (B, C, S, S) uint8, or floating-point numbers of 0..255.
        parameters: of the same B crops, on the same device.
        dtype: of the result.
        mean: of each channel, subtracted; in units of the value range 0..1.
        std: of each channel, divided by; in units of the value range 0..1.

    Returns:
        (B, C, S, S) of `dtype`, normalized.

    Source: EsViT section 4 and its reference code (the augmentation of DINO).
    """
    plan = parameters.plan
    with torch.autocast(crops.device.type, enabled=False):
        pixels = crops[:, :1] if plan.gray_images else crops
        pixels = pixels.index_select(0, parameters.sorting).float()
        _jitter(pixels, parameters)
        if plan.num_grayscale and pixels.shape[1] == NUM_COLORS:
            rows = parameters.grayscale[: plan.num_grayscale]
            pixels.index_copy_(0, rows, _gray(pixels.index_select(0, rows)).expand(-1, 3, -1, -1))
        if plan.num_blurred:
            rows = parameters.blurred[: plan.num_blurred]
            sigma = parameters.blur_sigma[: plan.num_blurred]
            pixels.index_copy_(0, rows, gaussian_blur(pixels.index_select(0, rows), sigma))
        if plan.num_solarized:
            rows = parameters.solarized[: plan.num_solarized]
            chosen = pixels.index_select(0, rows)
            pixels.index_copy_(
                0, rows, torch.where(chosen < SOLARIZE_THRESHOLD, chosen, 255 - chosen)
            )
        return _normalize(pixels.index_select(0, parameters.places), mean, std, dtype)


def gaussian_blur(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own Gaussian; beyond the border the nearest pixel continues.

    Two batched matrix products with the blur as a (side, side) matrix: a kernel of another width
    for every image, without a loop over its taps.

    Args:
        pixels: (B, C, S, S) float32.
        sigma: (B,) standard deviations in pixels, positive.

    Returns:
        (B, C, S, S) float32.
    """
    batch, channels, size, _ = pixels.shape
    if size == 1:
        return pixels
    # The reach covers the tails that fall beyond the border, which the border pixels take.
    reach = 4 * size
    distance = torch.arange(reach, device=pixels.device)
    weights = torch.exp(-0.5 * (distance / sigma[:, None]).square())
    weights /= 2 * weights.sum(1, keepdim=True) - 1
    tails = weights.flip(1).cumsum(1).flip(1)
    place = distance[:size]
    matrix = weights[:, (place[:, None] - place[None, :]).abs()]
    matrix[:, :, 0] = tails[:, place]
    matrix[:, :, -1] = tails[:, place.flip(0)]
    transposed = matrix.transpose(1, 2)
    for _ in range(2):
        rows = pixels.reshape(batch, channels * size, size) @ transposed
        pixels = rows.view(batch, channels, size, size).transpose(2, 3)
    return pixels


def _pad_with_zeros(values: np.ndarray, length: int) -> Tensor:
    """Append zeros to (n,) values until there are `length`."""
    return torch.from_numpy(np.pad(values, (0, length - len(values))))


def _gray(pixels: Tensor) -> Tensor:
    """Gray values (B, 1, S, S) of (B, 3, S, S); of other numbers of channels their mean."""
    if pixels.shape[1] != NUM_COLORS:
        return pixels.mean(1, keepdim=True)
    red, green, blue = pixels.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _jitter(pixels: Tensor, parameters: ColorParameters) -> None:
    """Jitter sorted crops in place."""
    plan = parameters.plan
    first, second, third, fourth = plan.hue_bounds
    end = len(pixels)
    before = ((second, end), (third, end), (fourth, end))
    after = ((first, fourth), (first, third), (first, second))
    for slot, (start, stop) in enumerate(before):
        if plan.active_slots[slot]:
            _affine(pixels[start:stop], parameters.coefficients[slot, :, start:stop])
    if plan.hue and pixels.shape[1] == NUM_COLORS:
        _rotate_hue(pixels[first:], parameters.hue[first:])
    for slot, (start, stop) in enumerate(after, start=NUM_SLOTS):
        if plan.active_slots[slot]:
            _affine(pixels[start:stop], parameters.coefficients[slot, :, start:stop])


def _affine(pixels: Tensor, coefficients: Tensor) -> None:
    """Apply one brightness, contrast or saturation step in place, by (3, B) factors of pixel, gray
    and mean gray.
    """
    factor, gray_factor, mean_factor = coefficients[:, :, None, None, None]
    gray = _gray(pixels)
    mean = gray.mean((2, 3), keepdim=True)
    if pixels.shape[1] != NUM_COLORS:
        pixels.mul_(factor + gray_factor).add_(mean_factor * mean).clamp_(0, 255)
    else:
        offset = (gray * gray_factor).addcmul_(mean_factor, mean)
        pixels.mul_(factor).add_(offset).clamp_(0, 255)


def _rotate_hue(pixels: Tensor, sextants: Tensor) -> None:
    """Rotate the hue of (B, 3, S, S) in place by (B,) sixths of a turn; value and saturation
    stay.
    """
    red, green, blue = pixels.unbind(1)
    value = pixels.amax(1)
    chroma = value - pixels.amin(1)
    # A gray pixel has no hue; any finite one will do, as its chroma is zero.
    inverse = chroma.clamp(min=1e-6).reciprocal_()
    hue = torch.where(
        value == red,
        (green - blue) * inverse,
        torch.where(value == green, (blue - red) * inverse + 2, (red - green) * inverse + 4),
    )
    hue += sextants[:, None, None]
    low = value - chroma
    for channel, shift in zip((red, green, blue), (0, 4, 2), strict=True):
        # Each channel is a trapezoid over the color circle: full within one sextant of its own hue,
        # none beyond two.
        turned = hue + shift
        turned -= 6 * (turned / 6).floor_()
        share = turned.sub_(3).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(low, chroma, share, out=channel)


def _normalize(
    pixels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Normalize (B, 1 or C, S, S) values of 0..255; by plain numbers: a constant tensor would
    wait.
    """
    output = torch.empty(
        len(pixels), len(mean), *pixels.shape[2:], dtype=dtype, device=pixels.device
    )
    for channel in range(len(mean)):
        source = pixels[:, channel % pixels.shape[1]]
        output[:, channel] = source * (1 / (255 * std[channel])) - mean[channel] / std[channel]
    return output
