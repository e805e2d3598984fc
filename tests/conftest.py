"""Tiny networks, configs and checkpoints that the tests share."""

import os
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import CONFIGS, NAMES, ROOT, WIDTH, build, tiny_config
from hypothesis import settings
from mmengine.config import Config
from mmengine.dataset import base_dataset
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from bdd_seg.datasets.street_scenes import write_dataset

# Of the tools that tests start, too: with tiny networks threads only get into each other's way.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# A shell's background job ignores Ctrl-C, and so would the tools that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Hypothesis tries the same examples each time. Tests in make stress ask for others.
settings.register_profile('fixed', derandomize=True, deadline=None)
settings.load_profile('fixed')


LONGEST = (
    *('test_wheel.py', 'test_many_processes.py', 'cli/test_study.py', 'cli/test_demo.py', 'test_configs.py'),
    *('losses/test_all_methods.py', 'teachers/test_transformers.py'),
)


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no process is left alone with one in the end."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


@pytest.fixture(autouse=True, scope='session')
def _few_threads():
    torch.set_num_threads(1)
    init_default_scope('mmseg')
    # mmengine collects garbage whenever a data set is built, here among all that the tests have imported.
    with mock.patch.object(base_dataset, 'gc'):
        yield


@pytest.fixture(scope='session')
def camvid() -> Path:
    """The real street images; a test that wants them is skipped where they are absent."""
    places = [os.environ.get('CAMVID_ROOT'), ROOT / 'data/camvid', ROOT.parent / 'shared/data/camvid']
    for place in places:
        if place and (Path(place) / 'images/train').is_dir():
            return Path(place)
    pytest.skip('CamVid is neither in $CAMVID_ROOT nor in data/camvid')


@pytest.fixture(scope='session')
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('street_scenes')
    write_dataset(root, num_train=8, num_val=4, height=48, width=96, seed=0, workers=1)
    return root


@pytest.fixture(scope='session')
def tiny_configs(tmp_path_factory, scenes) -> dict[str, Path]:
    """Config files for a teacher, a student and the student distilled: the demo's, shrunk."""
    folder = tmp_path_factory.mktemp('configs')
    checkpoint = folder / 'teacher.pth'
    paths = {}
    for kind, name in NAMES.items():
        model = {key: dict(value) for key, value in WIDTH.items()}
        expansion = 4 if kind == 'teacher' else 1
        model['decode_head']['channels'] = 16 if kind == 'teacher' else 8
        model['decode_head']['in_channels'] = 32 * expansion
        model['auxiliary_head']['in_channels'] = 16 * expansion
        if kind == 'distilled':
            model['teacher'] = {'config': str(paths['teacher']), 'checkpoint': str(checkpoint)}
        paths[kind] = folder / f'{kind}.py'
        paths[kind].write_text(tiny_config(CONFIGS / name, model, scenes))
    torch.manual_seed(7)
    teacher = build(paths['teacher'])
    with torch.no_grad():
        for name, buffer in teacher.named_buffers():  # statistics that eval and train mode tell apart
            if name.endswith('running_mean'):
                buffer.normal_()
    torch.save({'state_dict': teacher.state_dict()}, checkpoint)
    for path in paths.values():  # without _base_, so that they are read in a fraction of the time
        settings = Config.fromfile(path).to_dict()
        path.write_text('\n'.join(f'{key} = {value!r}' for key, value in settings.items()))
    paths['checkpoint'] = checkpoint
    return paths


@pytest.fixture
def batch() -> tuple[torch.Tensor, list[SegDataSample]]:
    """(2, 3, 32, 64) images and samples with labels 0 to 18 and some 255."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.normal(size=(2, 3, 32, 64)).astype('float32'))
    samples = []
    for _ in range(2):
        label = rng.integers(0, 20, size=(1, 32, 64))
        label[label == 19] = 255
        sample = SegDataSample(metainfo={'img_shape': (32, 64), 'ori_shape': (32, 64)})
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(label))
        samples.append(sample)
    return images, samples
