"""Networks for images of another number of channels, with the weights of those for three."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["inflate_channels"]


def inflate_channels(model: PreTrainedModel, num_channels: int) -> PreTrainedModel:
    """Make a network for images of another number of channels out of a trained one.

    The weights of the first layers are repeated, channel n taking those of channel n modulo the old
    number, and divided by how often each is used: on an image whose channels are repeated in this
    way, the new network computes what the old one does on the image itself. With fewer channels
    than before, each takes the same share of the sum: an image of one gray channel gives what its
    repetition gave.

    Args:
        model: network whose configuration says `num_channels`.
        num_channels: channels of the new network.

    Returns:
        The new network, in evaluation mode, with weights of its own.

    Raises:
        ValueError: the configuration has no `num_channels`, or the number of channels changes other
            tensors than the kernels of convolutions.
    """
    before = getattr(model.config, "num_channels", None)
    if not isinstance(before, int) or num_channels < 1:
        raise ValueError(
            f"{type(model).__name__} with num_channels {before!r} in its configuration cannot be "
            f"made into a network for {num_channels} channels: use one that names its channels"
        )
    config = copy.deepcopy(model.config)
    config.num_channels = num_channels
    # A pooling head that was left out stays so.
    is_headless = getattr(model, "pooler", model) is None
    options = {"add_pooling_layer": False} if is_headless else {}
    wider = type(model)(config, **options)
    torch.nn.Module.to(wider, model.dtype)
    wider.load_state_dict(_inflate(model.state_dict(), wider.state_dict(), before, num_channels))
    return wider.eval()


def _inflate(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], before: int, after: int
) -> dict[str, Tensor]:
    inflated = {}
    # Repeated without a remainder, or shared out equally.
    places = torch.arange(after) % before
    shares = torch.bincount(places, minlength=before)[places].float()
    for name, weight in weights.items():
        shape = wanted[name].shape
        if weight.shape != shape:
            if weight.ndim != 4 or weight.shape[1] != before or shape[1] != after:
                raise ValueError(
                    f"{name} is {tuple(weight.shape)} and would have to become {tuple(shape)}: "
                    f"only kernels of convolutions can be made to fit {after} channels"
                )
            if after < before:
                weight = weight.sum(1, keepdim=True).expand(-1, after, -1, -1) / after
            else:
                weight = weight[:, places] / shares.to(weight)[:, None, None]
        inflated[name] = weight
    return inflated
