"""What the region objective reports beside its loss."""

import torch

from esvit_hf.pretraining.objectives.region import match_diversity


def test_diversity_counts_the_regions_chosen():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 2, 5, 4), torch.randn(2, 2, 7, 4)
    shares = [
        len(
            {
                (teacher[q, b] @ row / teacher[q, b].norm(dim=1)).argmax().item()
                for row in student[v, b]
            }
        )
        / 7
        for v in range(3)
        for q in range(2)
        for b in range(2)
        if v != q
    ]
    torch.testing.assert_close(match_diversity(student, teacher), torch.tensor(shares).mean())
    same = torch.randn(2, 2, 5, 4)
    torch.testing.assert_close(match_diversity(same.flip(0), same), torch.tensor(1.0))
