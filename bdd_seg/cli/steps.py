"""The steps from the flags of train and test to a config that is ready to run."""

import argparse
import gc
from collections.abc import Callable
from functools import cache

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.registry import RUNNERS

from bdd_seg.cli.arguments import add_hooks, config_from, make_folder
from bdd_seg.cli.config_check import check_config, check_datasets
from bdd_seg.cli.summary import SummaryHook
from bdd_seg.distill.settings import build, checked_teacher
from bdd_seg.distill.student import is_distiller, plain_model
from bdd_seg.runtime.guards.data import LOADERS, check_data, class_names
from bdd_seg.runtime.guards.labels import check_labels_occur
from bdd_seg.runtime.upstream.config_text import skip_layout
from bdd_seg.runtime.upstream.console import QuietRunner, quiet_warnings
from bdd_seg.runtime.upstream.processes import check_sync_bn, join_processes
from bdd_seg.teachers import Teacher
from bdd_seg.teachers.cached.pipeline import read_teacher_cache

HOOKS = {
    'train': {
        'batch_norm': 'BatchNormHook',
        'checkpoint_fits': 'CheckpointFitsHook',
        'diagnostics': 'DiagnosticsHook',
        'exact_resume': 'ExactResumeHook',
        'finite': 'FiniteLossHook',
        'loss_state': 'LossStateHook',
        'teacher_first_look': 'TeacherFirstLookHook',
        'unlabelled': 'UnlabelledHook',
        'pretrained': 'PretrainedHook',
        'rehearsal': 'RehearsalHook',
    },
    'test': {'checkpoint_fits': 'CheckpointFitsHook'},
}
"""Hooks that are added to ``default_hooks`` if they are not there."""


def prepare(
    args: argparse.Namespace, mode: str, apply_flags: Callable[[Config, argparse.Namespace], None]
) -> Config:
    """Return the config of a command, checked and complete, and make its work dir.

    Args:
        args: The command's flags, those of ``add_config_arguments`` among them.
        mode: ``'train'`` or ``'test'``.
        apply_flags: Changes the config as the command's own flags say.

    Raises:
        ConfigError: The config cannot work.
    """
    _freeze_imports()
    if not args.verbose:
        quiet_warnings()
    cfg = config_from(args)
    add_hooks(cfg, HOOKS[mode])
    join_processes(cfg)
    check_config(cfg, mode)
    if mode == 'train':
        check_sync_bn(plain_model(cfg.model))
    apply_flags(cfg, args)
    if mode == 'train':
        check_teacher(cfg)
    check_datasets(cfg, *LOADERS[mode])
    if mode == 'train' and cfg.get('check_data', True):
        check_labels_occur(cfg)
    if mode == 'train':
        read_teacher_cache(cfg)
    check_data(cfg, mode)  # after all other changes to the data pipelines
    make_folder(cfg.work_dir, '--work-dir')
    return cfg


@cache
def _freeze_imports() -> None:
    """Exclude imported objects from garbage collection, once for a process.

    A collection takes a quarter of a second to look at them, and a start has eight. Workers of data loaders,
    which are forked, would also copy the memory that their collections touch.
    """
    gc.freeze()


def check_teacher(cfg: Config) -> None:
    """Check before anything is built that the teacher of a config, if it has one, can teach its student.

    Raises:
        ConfigError: It cannot. See :meth:`bdd_seg.teachers.Teacher.check`.
    """
    if not is_distiller(cfg.model):
        return
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        teacher = build(checked_teacher(cfg.model.get('teacher')), 'model.teacher')
        if isinstance(teacher, Teacher):
            teacher.check(plain_model(cfg.model), class_names(cfg.train_dataloader.dataset) or ())


def build_runner(cfg: Config, verbose: bool) -> Runner:
    """Build the runner of a prepared config, which prints a summary before its first iteration.

    Args:
        cfg: The whole config. The runner is the one that its ``runner_type`` names, if it has one.
        verbose: Whether the console shows what mmengine logs before that, too.
    """
    skip_layout(cfg)
    if 'runner_type' in cfg:
        runner = RUNNERS.build(cfg)
    else:
        runner = (Runner if verbose else QuietRunner).from_cfg(cfg)
    if isinstance(runner, Runner):  # the others have other attributes
        runner.register_hook(SummaryHook())
    return runner
