"""Images to compare and calibrate with."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from small_network import ABOUT, build

from bdd_seg.deploy.about import Windows
from bdd_seg.deploy.images import as_inputs, at_size, calibration_images, input_size, real_images, spread
from bdd_seg.deploy.load import trained_of
from bdd_seg.deploy.network import DeployedNetwork
from bdd_seg.errors import ConfigError

SIZE = (20, 32)


def test_spread_and_sizes():
    assert spread(range(10), 4) == [0, 2, 5, 7] and spread('ab', 4) == ['a', 'b']
    image = torch.zeros(3, 21, 40)
    assert input_size(ABOUT, image) == (21, 40)
    assert input_size(ABOUT.model_copy(update={'multiple': 8}), image) == (24, 40)
    assert input_size(ABOUT.model_copy(update={'size': SIZE}), image) == SIZE
    windows = Windows(crop_size=(16, 24), stride=(8, 12))
    assert input_size(ABOUT.model_copy(update={'windows': windows}), image) == (16, 24)


@pytest.fixture(scope='module')
def trained(tiny_configs, tmp_path_factory):
    cfg = Config.fromfile(tiny_configs['teacher'])
    return trained_of(cfg, tiny_configs['checkpoint'])


def test_training_images_without_their_labels(trained):
    found = calibration_images(trained, most=3)
    assert len(found) == 3 and len(calibration_images(trained)) == 8
    assert {(tuple(image.shape), image.dtype) for image in found} == {((3, 48, 96), torch.uint8)}
    assert not torch.equal(found[0], found[1]) and torch.equal(found[0], found[-3])


def test_given_images(trained, tmp_path):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f'{number}.png'), np.full((48, 96, 3), number, np.uint8))
    found = calibration_images(trained, [str(tmp_path)])
    assert [int(image.max()) for image in found] == [0, 1, 2]
    (tmp_path / '1.png').write_text('no image')
    with pytest.raises(ConfigError, match=r'1\.png'):
        list(found)


def test_no_images(trained, tmp_path):
    with pytest.raises(ConfigError, match='does not exist|no image'):
        calibration_images(trained, [str(tmp_path / 'missing')])
    cfg = Config(trained.cfg.to_dict())
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'missing')
    with pytest.raises(ConfigError, match='not on this machine.*--int8 FOLDER'):
        calibration_images(replace(trained, cfg=cfg))
    cfg.pop('train_dataloader')
    with pytest.raises(ConfigError, match='no training images'):
        calibration_images(replace(trained, cfg=cfg))


def test_images_of_the_validation_set(trained):
    found = real_images(trained, 2)
    assert [tuple(image.shape) for image in found] == [(3, 48, 96)] * 2


def test_windows_are_cut_and_other_images_resized():
    windows = ABOUT.model_copy(
        update={'windows': Windows(crop_size=(8, 8), stride=(4, 4)), 'takes': 'pixels'}
    )
    network = DeployedNetwork(build(), windows)
    image = torch.randint(0, 256, (3, 20, 32), dtype=torch.uint8)
    parts = image.permute(1, 2, 0).unfold(0, 8, 1).unfold(1, 8, 1)  # (13, 25, 3, 8, 8)
    places = set()
    for part in at_size(network, [image] * 40, (8, 8)):
        ((top, left),) = (parts == part.permute(2, 0, 1)).all(4).all(3).all(2).nonzero().tolist()
        places.add((top, left))
    assert len(places) > 20  # all over the image
    assert max(top for top, _ in places) > 9 and max(left for _, left in places) > 19
    assert torch.equal(at_size(network, [image], (8, 8), 5)[0], at_size(network, [image] * 6, (8, 8))[5])
    inputs = list(as_inputs(network, [image, image]))
    assert not np.array_equal(*inputs) and inputs[1].shape == (1, 8, 8, 3)
    assert at_size(network, [image[:, :6]], (8, 8)).shape == (1, 8, 8, 3)
    with pytest.raises(ConfigError, match='without --with-preprocessing'):
        at_size(network, [image.float()], (8, 8))
