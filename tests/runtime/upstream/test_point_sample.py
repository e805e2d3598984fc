import mmseg.models.decode_heads.point_head as point_head
import torch
from mmseg.models.decode_heads import PointHead


def test_point_sample_interpolates_at_points_given_from_0_to_1():
    """Pixel centres lie at (i + ½) / size: those give the pixels, and the middle of two their mean."""
    image = torch.arange(12.0).view(1, 1, 3, 4)
    points = torch.tensor([[[0.5 / 4, 0.5 / 3], [2.5 / 4, 1.5 / 3], [1.0 / 4, 0.5 / 3], [0.5 / 4, 1.0 / 3]]])
    found = point_head.point_sample(image, points).flatten()
    torch.testing.assert_close(found, torch.tensor([0, 6, 0.5, 2]))


def test_a_head_that_needs_it_can_be_built():
    head = PointHead(in_channels=[4], in_index=[0], channels=4, num_classes=2, num_fcs=1)
    assert head(torch.randn(1, 4, 5), torch.randn(1, 2, 5)).shape == (1, 2, 5)
