"""Measure the time and memory of a distillation step, beside those of the same student's own step.

The parts: steps (the student alone, and with each kind of teacher), teacher (its forward pass alone), loader
(whole iterations, from files to updated weights, with and without a cache of the teacher's outputs). Every
ratio is to a step of the student alone.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bdd_seg  # noqa: F401  first: it says what an installation lacks

# isort: split
import torch
from harness import (
    Case,
    Result,
    add_argument,
    add_shared_arguments,
    check_at_least,
    check_shared_arguments,
    format_setting,
    measure,
    print_saved_result,
    save_result,
    settings_of,
)
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import SampleList
from torch import Tensor

from bdd_seg.cli.arguments import make_folder
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.datasets.street_scenes import write_dataset
from bdd_seg.datasets.street_scenes.scene import MIN_SIZE
from bdd_seg.distill.student import is_distiller, plain_config
from bdd_seg.distill.taps import Tap
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.study.machine import describe_machine
from bdd_seg.study.processes import command_line, run_command
from bdd_seg.teachers.base import Answer
from bdd_seg.teachers.cached.pipeline import read_teacher_cache
from bdd_seg.teachers.mmseg import MMSegTeacher

ROOT = Path(__file__).parent.parent
HEADLINE = ROOT / 'configs/bdd/bdd_pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
NAME = 'step_cost'
PARTS = ('steps', 'teacher', 'loader')
STUDENT = 'student alone'
TEACHERS: dict[str, dict[str, Any]] = {
    ', done plainly': {'type': 'PlainTeacher'},
    '': {},
    ', bf16': {'precision': 'bf16'},
    ', compile': {'compile': True},
}
"""End of a row's name → settings of the teacher. The answers of the others are compared with the first's."""
SCENES = 8
"""Images in the data set of the part loader."""


@MODELS.register_module()
class PlainTeacher(MMSegTeacher):
    """The teacher as one would write it down: an eager call without gradients, and nothing else."""

    def __call__(self, inputs: Tensor, data_samples: SampleList | None = None) -> Answer:
        """Answer with the outputs of the tapped modules, known everywhere.

        Args:
            inputs: (N, 3, H, W) images as the student receives them.
            data_samples: Not needed.
        """
        self.model.to(inputs.device)
        with torch.no_grad(), Tap(self.model, self.taps) as outputs:
            self.model(self.prepare(inputs), mode='tensor')
        return Answer(outputs)


@dataclass
class Network:
    """A model in training mode and its optimizer."""

    model: Any
    optimizer: OptimWrapper

    def step(self, data: dict) -> None:
        """Take one step as ``train_step`` does, on a batch that went through the data preprocessor."""
        with self.optimizer.optim_context(self.model):
            losses = self.model(**data, mode='loss')
        self.optimizer.update_params(self.model.parse_losses(losses)[0])

    def load_and_step(self, batches: Iterator[dict]) -> None:
        """Take one iteration of mmengine's train loop."""
        self.model.train_step(next(batches), optim_wrapper=self.optimizer)

    def teach(self, data: dict) -> Tensor:
        """Return the teacher's logits (N, C, h, w), in the precision of the step."""
        with self.optimizer.optim_context(self.model):
            return self.model.teacher(**data).maps[self.model.teacher.logits_tap]


def parse_args() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = partial(add_argument, parser)
    add('--config', default=HEADLINE, help='config of a distilled run')
    add('--shape', type=int, nargs=2, default=(256, 512), metavar=('H', 'W'), help='size of the crops')
    add('--batch', type=int, default=2, help='crops in a batch, at least 2 for the sake of BatchNorm')
    add('--amp', action='store_true', help='train in bfloat16 autocast')
    add('--compile', action='store_true', help='also a teacher with compile=True, which takes minutes')
    add('--only', nargs='+', choices=PARTS, default=PARTS, help='parts to measure')
    add('--workers', type=int, default=0, help='processes that load data')
    add('--teacher-checkpoint', help="the teacher's weights; without it they are random, and as fast")
    add_shared_arguments(parser, NAME)
    args = parser.parse_args()
    check_arguments(args)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Check the command line.

    Raises:
        ConfigError: A number is too small, or the device is not there.
    """
    check_shared_arguments(args)
    if args.amp and args.device == 'cpu' and torch.cuda.is_available():
        raise ConfigError(
            '--amp would be for the GPU; hide it: CUDA_VISIBLE_DEVICES= python benchmarks/step_cost.py'
        )
    check_at_least(args, 'batch', 2)
    check_at_least(args, 'workers', 0)
    least, reason = 1, ''
    if 'loader' in args.only:
        least, reason = MIN_SIZE // 2, ', since the part loader draws scenes of twice that'
    if min(args.shape) < least:
        raise ConfigError(
            f'--shape must be at least {least} {least}{reason}, got {format_setting(args.shape)}'
        )


def main() -> None:
    """Run the benchmark."""
    args = parse_args()
    if args.table is not None:
        print_saved_result(args.table, args.only)
        return
    make_folder(args.out, '--out')
    MMLogger.get_instance('mmengine', log_level='ERROR')  # a line for each layer that is initialised
    init_default_scope('mmseg')
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        cases, notes = build_cases(args, Path(folder))
        rows = measure(cases, args.device, args.repetitions)
    machine = describe_machine(args.device == 'cuda')
    result = Result(machine, settings_of(args), notes, rows)
    height, width = args.shape
    device = machine['gpu' if args.device == 'cuda' else 'cpu']
    title = f'{device}, {args.batch} crops of {height}×{width}'
    save_result(result, args.out, NAME, title, f'time relative to a step of the {STUDENT}')


def build_cases(args: argparse.Namespace, folder: Path) -> tuple[list[Case], list[str]]:
    """Return the cases and the notes on them. The first case is the reference of all.

    Args:
        args: The command line.
        folder: A folder for the teacher's weights, scenes and their cache, needed while the cases run.

    Raises:
        ConfigError: The config cannot be measured with these arguments.
    """
    cfg = adapt_config(args, folder)
    torch.backends.cudnn.benchmark = cfg.get('env_cfg', {}).get('cudnn_benchmark', False)  # as a Runner does
    data = random_batch(args, cfg)
    student = build_network(plain_config(cfg), args.device)
    distillers = {
        ending: build_network(with_teacher(cfg, **TEACHERS[ending]), args.device)
        for ending in teacher_endings(args)
    }
    check_networks(student, distillers, data, args)
    notes = [
        'The teacher has random weights: that argmaxes agree, or do not, means little.'
        if args.teacher_checkpoint is None
        else f'The teacher has the weights of {args.teacher_checkpoint}.'
    ]
    cases = [Case('steps', STUDENT, partial(student.step, data), STUDENT)]
    if 'steps' in args.only:
        cases += [
            Case('steps', f'live teacher{ending}', partial(network.step, data), STUDENT)
            for ending, network in distillers.items()
        ]
        replayed = build_network(with_teacher(cfg, record=str(folder / 'recording')), args.device)
        replayed.step(data)  # which records the answers that all others replay
        cases.append(Case('steps', 'recorded teacher', partial(replayed.step, data), STUDENT))
    if 'teacher' in args.only:
        cases += teacher_cases(distillers, data)
    if 'loader' in args.only:
        notes.append(write_cache(cfg, folder, args))
        networks = {STUDENT: student, 'live teacher': distillers['']}
        cases += loader_cases(cfg, folder / 'cache', networks, args)
    return cases, notes


def teacher_endings(args: argparse.Namespace) -> list[str]:
    """Return the keys of :data:`TEACHERS` that the arguments ask for."""
    if not {'steps', 'teacher'} & set(args.only):
        return ['']
    return [ending for ending, settings in TEACHERS.items() if args.compile or not settings.get('compile')]


def check_networks(
    student: Network, distillers: dict[str, Network], data: dict, args: argparse.Namespace
) -> None:
    """Run every network once.

    Raises:
        ConfigError: A network cannot run crops of this size, or ``torch.compile`` fails.
    """
    try:
        student.step(data)
        for network in distillers.values():
            network.teach(data)
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(
            f'--shape {format_setting(args.shape)}: {args.config} cannot run crops of this size: '
            f'{" ".join(str(error).split())[:300]}'
        ) from error
    for network in distillers.values():
        teacher = network.model.teacher
        if teacher.compile and not teacher.network.is_compiled:
            raise ConfigError('--compile: torch.compile fails here, which tools/train.py would only warn of')


def teacher_cases(distillers: dict[str, Network], data: dict) -> list[Case]:
    """Return cases of the teacher's forward pass alone.

    Their details say how far the answers are from the plain teacher's in float32.
    """
    plain = distillers[', done plainly'].model.teacher
    expected = plain(**data).maps[plain.logits_tap]
    cases = []
    for ending, network in distillers.items():
        logits = network.teach(data)
        details = {
            'largest difference of the logits': (logits - expected).abs().max().item(),
            'argmaxes that differ (%)': 100 * (logits.argmax(1) != expected.argmax(1)).double().mean().item(),
        }
        run = partial(network.teach, data)
        cases.append(Case('teacher', f'teacher forward{ending}', run, STUDENT, details=details))
    return cases


def loader_cases(
    cfg: Config, cache: Path, networks: dict[str, Network], args: argparse.Namespace
) -> list[Case]:
    """Return cases of whole iterations and of loading alone, without and with the cache.

    Args:
        cfg: The config of the distilled run.
        cache: Folder of the cache of its teacher.
        networks: Name → network that needs no cache.
        args: The command line.
    """
    cached_cfg = with_teacher(cfg, type='CachedTeacher', cache=str(cache))
    read_teacher_cache(cached_cfg)
    plain, cached = (build_dataset(own.train_dataloader) for own in (cfg, cached_cfg))
    rows: list[tuple[str, Callable[..., object], dict[str, Any]]] = [
        ('loader alone', next, plain),
        ('loader alone, with the cache', next, cached),
    ]
    for name, network in networks.items():
        rows.append((f'{name}, data loading included', network.load_and_step, plain))
    network = build_network(cached_cfg, args.device)
    rows.append(('cached teacher, data loading included', network.load_and_step, cached))
    return [
        Case('loader', name, run, STUDENT, loader=loader, images=args.batch) for name, run, loader in rows
    ]


def build_dataset(loader: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a data loader with its data set built, after each image was read once."""
    dataset = DATASETS.build(loader['dataset'])
    for i in range(len(dataset)):
        dataset[i]
    return {**loader, 'dataset': dataset}


def write_cache(cfg: Config, folder: Path, args: argparse.Namespace) -> str:
    """Write the cache to ``folder/cache`` by the command a user would run; return a note on time and size.

    Raises:
        ConfigError: The command failed. Its output is in the folder of ``--out``.
    """
    start = time.monotonic()
    cfg.dump(folder / 'config.py')
    environment = {'CUDA_VISIBLE_DEVICES': ''} if args.device == 'cpu' else {}
    line = command_line('cache', folder / 'config.py', '--out', folder / 'cache')
    run_command(line, args.out / 'cache.log', environment, stop=lambda: False)
    size = sum(path.stat().st_size for path in (folder / 'cache').iterdir()) / 2**20 / SCENES
    return f'The cache was written in {time.monotonic() - start:.0f} s, {size:.2f} MiB per image.'


def adapt_config(args: argparse.Namespace, folder: Path) -> Config:
    """Return the config at the size that is asked for, with a teacher that has weights, and scenes to load.

    Raises:
        ConfigError: It is no distilled run, or its data cannot be drawn.
    """
    cfg = load_config(args.config)
    model = cfg.get('model') or {}
    if not is_distiller(model):
        raise ConfigError(
            f'--config {args.config} distils nothing: its model has the type {model.get("type")!r}'
        )
    cfg.model.pretrained = None
    cfg.model.data_preprocessor.size = tuple(args.shape)
    if args.amp:
        cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    checkpoint = args.teacher_checkpoint
    if checkpoint is None:
        checkpoint = folder / 'teacher.pth'
        write_random_teacher(cfg.model.teacher.config, checkpoint)
    cfg.model.teacher.checkpoint = str(checkpoint)
    if 'loader' in args.only:
        use_scenes(cfg, args, folder / 'scenes')
    return cfg


def write_random_teacher(config: str, checkpoint: Path) -> None:
    """Write a checkpoint with the initial weights of a teacher's config."""
    settings = MMSegTeacher(config, checkpoint).model_config()
    teacher = MODELS.build({**settings, 'pretrained': None})
    teacher.init_weights()
    torch.save(teacher.state_dict(), checkpoint)


def use_scenes(cfg: Config, args: argparse.Namespace, folder: Path) -> None:
    """Draw scenes of twice the crop's height and width, as Cityscapes is to its crop, and train on them.

    Args:
        cfg: The whole config, changed in place.
        args: The command line.
        folder: The folder for the scenes.

    Raises:
        ConfigError: The config trains on other data than Cityscapes, or scenes cannot have this size.
    """
    loader = cfg.train_dataloader
    if loader.dataset.type != 'CityscapesDataset':
        raise ConfigError(
            f'the part loader draws Cityscapes, not {loader.dataset.type}; name others with --only'
        )
    height, width = (2 * size for size in args.shape)
    try:
        write_dataset(folder, SCENES, 0, height, width)
    except ValueError as error:
        raise ConfigError(f'--shape: scenes are drawn at twice this size, and {error}') from error
    loader.update(batch_size=args.batch, num_workers=args.workers, persistent_workers=False)
    loader.dataset.data_root = str(folder)
    # The cache goes through the validation pipeline.
    for transform in [*loader.dataset.pipeline, *cfg.val_dataloader.dataset.pipeline]:
        if 'crop_size' in transform:
            transform.crop_size = tuple(args.shape)
        if 'scale' in transform:
            transform.scale = (width, height)


def with_teacher(cfg: Config, **settings: Any) -> Config:
    """Return a copy of the config with other settings of its teacher."""
    cfg = copy.deepcopy(cfg)
    cfg.model.teacher.update(settings)
    return cfg


def build_network(cfg: Config, device: str) -> Network:
    """Build the model of a config and its optimizer, as a Runner on one process does."""
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    model.to(device).train()
    return Network(model, build_optim_wrapper(model, cfg.optim_wrapper))


def random_batch(args: argparse.Namespace, cfg: Config) -> dict:
    """Return a batch as a data preprocessor does: normalised images, and labels some of which are 255."""
    head = cfg.model.decode_head
    classes = (head[-1] if isinstance(head, list) else head).num_classes
    labels = torch.randint(0, classes + 1, (args.batch, 1, *args.shape))
    labels[labels == classes] = 255
    samples = []
    for label in labels:
        metainfo = {'img_shape': tuple(args.shape), 'ori_shape': tuple(args.shape)}
        samples.append(SegDataSample(metainfo=metainfo, gt_sem_seg=PixelData(data=label)).to(args.device))
    return {'inputs': torch.randn(args.batch, 3, *args.shape, device=args.device), 'data_samples': samples}


if __name__ == '__main__':
    with one_line_errors('interrupted; nothing is written'):
        main()
