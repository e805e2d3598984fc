"""The wheel by itself: installed in a folder of its own, and used from an empty one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, MMSEG_TOOLS, NAMES, ROOT, build, logged

SOURCES = (
    *('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'),
    *('bdd_seg_cli.py', 'bdd_seg', 'configs', 'tools'),
)


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """A folder that holds what the wheel holds."""
    folder = tmp_path_factory.mktemp('wheel')
    (folder / 'source').mkdir()
    for name in SOURCES:  # a copy, since the build leaves files beside what it reads
        source, copy = ROOT / name, folder / 'source' / name
        if source.is_dir():
            shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(source, copy)
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    options = ['--no-deps', '--no-index', '--no-build-isolation', '--wheel-dir', folder]
    subprocess.run([*pip, 'wheel', *options, folder / 'source'], check=True, capture_output=True)
    (wheel,) = folder.glob('*.whl')
    target = ['install', '--no-deps', '--no-index', '--target', folder / 'installed', wheel]
    subprocess.run([*pip, *target], check=True, capture_output=True)
    shutil.rmtree(folder / 'source')  # links into it would not go unnoticed
    return folder / 'installed'


# Runs a script once with each list of arguments that its standard input has, in a fork, so that what takes
# seconds to import is imported once. What a run prints goes to a file that is named after its number.
RUNS = """
import gc, json, os, runpy, sys
import bdd_seg.cli.train, matplotlib.backends.backend_agg, mmseg.apis, setuptools, torch._dynamo
gc.freeze()
script, commands = json.load(sys.stdin)
for number, arguments in enumerate(commands):
    if os.fork() == 0:
        output = os.open(f'{number}.txt', os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = [script, *arguments]
        try:
            runpy.run_path(script, run_name='__main__')
        except SystemExit as ended:
            sys.stdout.flush()
            os._exit(ended.code is not None)  # to take down all that is imported would take a second
    assert os.wait()[1] == 0, open(f'{number}.txt').read()[-3000:]
"""


def run(installed: Path, folder: Path, *commands: list) -> list[str]:
    """Run ``bdd-seg`` as the wheel has it, and return what each command printed."""
    given = json.dumps([str(installed / 'bin/bdd-seg'), [[*map(str, words)] for words in commands]])
    environment = {**os.environ, 'PYTHONPATH': str(installed)}  # before the checkout, which is installed, too
    done = subprocess.run(
        [sys.executable, '-c', RUNS], cwd=folder, env=environment, input=given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [(folder / f'{number}.txt').read_text() for number in range(len(commands))]


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_the_wheel_holds_modules_configs_and_tools(installed):
    package = installed / 'bdd_seg'
    assert not (package / '.mim/configs').is_symlink()
    configs = {name for name in files(CONFIGS) if name.endswith(('.py', '.md'))}
    assert files(package / '.mim/configs') == configs
    assert files(package / '.mim/tools') == files(ROOT / 'tools')
    assert (package / '.mim/model-index.yml').exists() and (package / 'study/demo.yaml').exists()
    assert files(package / 'report/templates') == {'page.css', 'page.html', 'page.js'}
    modules = {name for name in files(ROOT / 'bdd_seg') if name.endswith('.py') and '.mim' not in name}
    assert {name for name in files(package) if name.endswith('.py') and '.mim' not in name} == modules
    assert {path.name for path in installed.iterdir()} == {
        'bdd_seg',
        'bdd_seg_cli.py',
        *(path.name for path in installed.glob('bdd_seg-*.dist-info')),
        *(name for name in ('bin', '__pycache__') if (installed / name).exists()),
    }


def test_its_metadata(installed):
    (info,) = installed.glob('bdd_seg-*.dist-info')
    text = (info / 'METADATA').read_text()
    assert (ROOT / 'README.md').read_text() in text
    header = text.partition('\n\n')[0].splitlines()
    assert 'Requires-Python: >=3.10' in header
    assert {f'Classifier: Programming Language :: Python :: 3.{minor}' for minor in range(10, 15)} < {*header}
    # mmengine takes the first for the package's folder
    assert (info / 'top_level.txt').read_text().split() == ['bdd_seg', 'bdd_seg_cli']


CONFIG = """
import sys
assert sys.modules['bdd_seg'].__file__.startswith({installed!r})
_base_ = 'bdd_seg::{distilled}'
model = dict(
    teacher=dict(config='bdd_seg::{teacher}', checkpoint={checkpoint!r}),
    data_preprocessor=dict(size=(32, 64)))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(
    data_root={scenes!r}, pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='RandomCrop', crop_size=(32, 64)),
        dict(type='PackSegInputs')]))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root={scenes!r}))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2)
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
"""


@pytest.fixture(scope='module')
def config(installed, scenes, tmp_path_factory) -> Path:
    """A config that inherits by ``bdd_seg::``, and whose teacher's config is named so, too."""
    folder = tmp_path_factory.mktemp('config')
    checkpoint = folder / 'teacher.pth'
    torch.manual_seed(0)
    torch.save({'state_dict': build(CONFIGS / NAMES['teacher']).state_dict()}, checkpoint)
    text = CONFIG.format(
        installed=str(installed),
        checkpoint=str(checkpoint),
        scenes=str(scenes),
        **{kind: NAMES[kind] for kind in ('distilled', 'teacher')},
    )
    (folder / 'config.py').write_text(text)
    return folder / 'config.py'


def test_help_and_training_in_an_empty_folder(installed, config, tmp_path):
    mmsegs = ['run', MMSEG_TOOLS / 'train.py', config, '--work-dir', 'theirs']
    shown, trained, _ = run(installed, tmp_path, ['--help'], ['train', config], mmsegs)
    assert shown.startswith('usage: bdd-seg COMMAND')
    lines = trained.splitlines()
    assert next(i for i, line in enumerate(lines) if 'Iter(train)' in line) <= 20
    ours, theirs = logged(tmp_path / 'work_dirs/config'), logged(tmp_path / 'theirs')
    assert [record['distill.loss_bdd'] > 0 for record in ours] == [True, True]
    assert [record['loss'] for record in ours] == [record['loss'] for record in theirs]
