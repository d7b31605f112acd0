"""The figure of attention: one map a head, where the regions are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from esvit_hf.figures.attention import plot_attention


@pytest.mark.parametrize("heads", [1, 3, 24])
def test_attention_of_each_head(tmp_path: Path, heads: int) -> None:
    maps = torch.zeros(heads, 3, 4)
    maps[:, 1, 2] = torch.linspace(0.2, 0.4, heads)
    maps[:, 0, 0] = 0.1
    image = torch.randint(0, 256, (3, 22, 30), dtype=torch.uint8)
    picture = plot_attention(image, maps, (8, 8), (17.0, 9.0))
    panels = [axes for axes in picture.figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [
        "query",
        *(f"head {head}" for head in range(heads)),
    ]
    for head, axes in enumerate(panels[1:]):
        heat = axes.images[1]
        # Regions of 8 pixels from the corner on, also those that stick out.
        assert heat.get_extent() == [0, 32, 24, 0]
        assert axes.get_xlim() == (0, 30)
        assert axes.get_ylim() == (22, 0)
        shown = np.ma.filled(heat.get_array(), np.nan)
        np.testing.assert_allclose(shown[1, 2], 100 * maps[head, 1, 2])
        assert np.isnan(shown).sum() == 10
        assert heat.get_clim() == (0, pytest.approx(100 * float(maps.max())))
        assert axes.lines[0].get_xydata().tolist() == [[17, 9]]
    picture.save(tmp_path / "attention.pdf")
