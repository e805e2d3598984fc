"""TensorBoard, W&B and MLflow: a missing package is one line, before anything is built."""

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
from helpers import TRAIN, complaint, train

TRACKERS = {'tensorboard': 'TensorboardVisBackend', 'wandb': 'WandbVisBackend', 'mlflow': 'MLflowVisBackend'}


def tracked(tiny_configs, folder, kind):
    """The tiny distilled config and the one line of docs/logging.md."""
    config = folder / 'tracked.py'
    backends = f'[dict(type="LocalVisBackend"), dict(type="{kind}")]'
    config.write_text(
        f'_base_ = {str(tiny_configs["distilled"])!r}\nvisualizer = dict(vis_backends={backends})\n'
    )
    return config


@pytest.mark.parametrize('package', TRACKERS)
@pytest.mark.parametrize('is_folder', [False, True])
def test_a_missing_package_is_one_line(tiny_configs, tmp_path, monkeypatch, package, is_folder):
    """A folder of that name, as W&B makes one where it runs, is no package."""
    find = importlib.util.find_spec
    found = ModuleSpec(package, None, is_package=True) if is_folder else None
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *args: found if name == package else find(name, *args)
    )
    config = tracked(tiny_configs, tmp_path, TRACKERS[package])
    line = complaint(monkeypatch, TRAIN, config, '--work-dir', tmp_path / 'run')
    kind = TRACKERS[package]
    assert (
        line == f"error: visualizer.vis_backends.1 ({kind}) needs {package}: pip install 'bdd-seg[{package}]'"
    )
    assert not (tmp_path / 'run').exists()


def test_tensorboard_gets_the_log(tiny_configs, tmp_path):
    accumulator = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator', reason='needs bdd-seg[tensorboard]'
    )
    config = tracked(tiny_configs, tmp_path, 'TensorboardVisBackend')
    train(config, tmp_path / 'run', '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_begin=9')
    (file,) = (tmp_path / 'run').glob('*/vis_data/events*')
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    for key in ('loss', 'distill.loss_bdd', 'distill.forward_kl', 'distill.reverse_kl', 'distill.agreement'):
        assert [event.step for event in events.Scalars(key)] == [1, 2]
