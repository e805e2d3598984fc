import pytest
import tiny_segmentors
import torch
from mmseg.models.backbones import MAE, BEiT, VisionTransformer
from torch import nn

from bdd_seg.distill.taps import LOGITS, Tap
from bdd_seg.teachers import MMSegTeacher
from bdd_seg.teachers.segmentors import fixed_input_size, log_scores, logits_tap, mask_scores, run

# Network → the tap of its class logits. PointRend refines the coarse ones of a student.
TAPS = {
    **dict.fromkeys(('PSPNet', 'EncNet', 'SegFormer', 'UPerNet', 'SETR'), 'decode_head.conv_seg'),
    **dict.fromkeys(('Segmenter', 'Segmenter with a neck', 'K-Net', 'PointRend', 'SAN'), LOGITS),
    'OCRNet': 'decode_head.1.conv_seg',
}


def predicted(model, images, samples) -> torch.Tensor:
    """What mmseg's own inference says, (N, C, H, W)."""
    return torch.stack([sample.seg_logits.data for sample in model.predict(images, samples)])


def resized(logits, size) -> torch.Tensor:
    return nn.functional.interpolate(logits, size, mode='bilinear')


@pytest.mark.parametrize('name', tiny_segmentors.SEGMENTORS)
def test_a_segmentor_answers_as_in_mmsegs_inference(name):
    model = tiny_segmentors.build(name).eval()
    images, samples = tiny_segmentors.batch()
    assert logits_tap(model) == TAPS[name]
    with torch.no_grad():
        logits = resized(run(model, images), images.shape[2:])
        expected = predicted(model, images, samples)
    if name == 'SAN':
        logits, expected = logits.softmax(1), expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(logits, expected)
    assert (expected.amax((2, 3)) > expected.amin((2, 3))).all()


@pytest.mark.parametrize('name', ['K-Net', 'Segmenter with a neck', 'PointRend', 'SAN'])
def test_a_teacher_answers_so(name, tmp_path):
    network = tiny_segmentors.build(name).eval()
    torch.save({'state_dict': network.state_dict()}, tmp_path / 'teacher.pth')
    teacher = MMSegTeacher(tiny_segmentors.settings(name), tmp_path / 'teacher.pth')
    teacher.build(tiny_segmentors.build('PSPNet'), [None])
    images, _ = tiny_segmentors.batch()
    with torch.no_grad():
        expected = run(network, images)
    answer = teacher(images).maps[LOGITS]
    torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-3 * expected.std().item())
    assert teacher.map_channels(None) == answer.shape[1] == tiny_segmentors.CLASSES


def test_pointrend_refines_some_points_only():
    model = tiny_segmentors.build('PointRend').eval()
    model.test_cfg.update(subdivision_steps=1, subdivision_num_points=50)
    images, _ = tiny_segmentors.batch()
    with torch.no_grad(), Tap(model, [LOGITS]) as outputs:
        refined = run(model, images)
    coarse = resized(resized(outputs[LOGITS], (32, 48)), (64, 96))
    changed = (refined != coarse).any(1).sum((1, 2))
    assert (changed >= 50).all()
    assert (changed <= 50 * 4 * 4).all()  # those around 50 cells, of 2×2 pixels, when they are resized


def test_mask_scores_add_the_masks_of_each_class():
    torch.manual_seed(0)
    classes, masks = torch.randn(2, 4, 3 + 1, dtype=torch.float64), torch.randn(2, 4, 5, 6).double()
    scores = mask_scores(classes, masks)
    assert scores.shape == (2, 3, 5, 6)
    for n, c, y, x in ((0, 0, 0, 0), (1, 2, 4, 5), (0, 1, 3, 2)):
        expected = 0.0
        for query in range(4):
            powers = [value.exp().item() for value in classes[n, query]]
            expected += powers[c] / sum(powers) / (1 + (-masks[n, query, y, x]).exp().item())
        assert scores[n, c, y, x].item() == pytest.approx(expected, rel=1e-12)


def test_logits_of_scores_are_finite_and_their_softmax_is_the_scores():
    scores = torch.tensor([[0.5, 0.0], [1.5, 0.0], [2.0, 0.0]])[None, :, None]  # (1, 3, 1, 2)
    logits = log_scores(scores)
    torch.testing.assert_close(logits.softmax(1)[0, :, 0, 0], torch.tensor([0.125, 0.375, 0.5]))
    torch.testing.assert_close(logits.softmax(1)[0, :, 0, 1], torch.full((3,), 1 / 3))


def test_networks_of_one_input_size():
    def sizes(backbone):
        model = nn.Module()
        model.backbone = backbone
        return fixed_input_size(model)

    small = {'img_size': (32, 48), 'patch_size': 16, 'embed_dims': 8, 'num_layers': 1, 'num_heads': 2}
    assert sizes(BEiT(**small, out_indices=(0,))) == (32, 48)
    assert sizes(MAE(**small, out_indices=(0,))) == (32, 48)
    assert sizes(VisionTransformer(**small)) is None
    assert fixed_input_size(nn.Linear(1, 1)) is None
