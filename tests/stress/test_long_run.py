"""3,000 iterations of the tiny pair by the real tool, two minutes: nothing grows with them."""

import json
import os
import statistics
from pathlib import Path

import numpy as np
from helpers import EVERYTHING_RANDOM, logged, train

ITERATIONS, WARM_UP, SAVING, LOGGING = 3000, 500, 500, 10
SETTINGS = f"""
custom_imports = dict(imports=['bdd_seg', 'watch'])
custom_hooks += [dict(type='WatchResources')]
train_dataloader.update(num_workers=2, persistent_workers=True)
train_cfg = dict(max_iters={ITERATIONS}, val_interval={SAVING})
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end={ITERATIONS}, by_epoch=False)]
default_hooks = dict(logger=dict(interval={LOGGING}), checkpoint=dict(interval={SAVING}, max_keep_ckpts=2))
"""


def test_nothing_grows_with_the_iterations(tiny_configs, tmp_path, monkeypatch, capsys):
    config = tmp_path / 'long.py'
    config.write_text(EVERYTHING_RANDOM.format(base=str(tiny_configs['distilled'])) + SETTINGS)
    monkeypatch.setenv(
        'PYTHONPATH', os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])
    )
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    train(config, tmp_path / 'run')
    lines = (tmp_path / 'run/resources.jsonl').read_text().splitlines()
    memory, files, seconds = (
        np.array([json.loads(line)[key] for line in lines]) for key in ('memory', 'files', 'seconds')
    )
    assert len(memory) == ITERATIONS
    slope, _ = np.polyfit(np.arange(WARM_UP, ITERATIONS), memory[WARM_UP:], 1)
    thirds = [statistics.median(part) for part in np.array_split(seconds[WARM_UP:], 3)]
    with capsys.disabled():
        print(
            f'\nafter {WARM_UP} of {ITERATIONS} iterations: {slope / 1024:+.2f} KB per iteration at '
            f'{memory[WARM_UP:].mean() / 2**20:.0f} MB; {files[WARM_UP:].min()} to {files[WARM_UP:].max()} '
            f'open files; median ms per iteration by thirds {", ".join(f"{1000 * t:.1f}" for t in thirds)}'
        )
    assert slope < 10 * 1024
    # Batches on their way from a worker are files for a moment.
    assert np.median(files[-WARM_UP:]) <= np.median(files[WARM_UP : 2 * WARM_UP])
    assert files[WARM_UP:].max() <= np.median(files) + 10
    names = sorted(path.name for path in (tmp_path / 'run').glob('*.pth'))
    assert names == [f'iter_{ITERATIONS - SAVING}.pth', f'iter_{ITERATIONS}.pth']
    steps = [record['step'] for record in logged(tmp_path / 'run')]
    first_pass = 4  # over 8 images, which mmengine logs too
    assert steps == [first_pass, *range(LOGGING, ITERATIONS + 1, LOGGING)]
