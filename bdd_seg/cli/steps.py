"""The steps from the flags of train and test to a config that is ready to run."""

import argparse
from collections.abc import Callable

from mmengine.config import Config

from bdd_seg.cli.arguments import add_hooks, config_from, make_folder
from bdd_seg.cli.config_check import check_config, check_datasets
from bdd_seg.distill.student import plain_model
from bdd_seg.runtime.guards.data import LOADERS, check_data
from bdd_seg.runtime.upstream.processes import check_sync_bn, join_processes
from bdd_seg.teachers.cached.pipeline import read_teacher_cache

HOOKS = {
    'train': {
        'batch_norm': 'BatchNormHook',
        'checkpoint_fits': 'CheckpointFitsHook',
        'exact_resume': 'ExactResumeHook',
        'finite': 'FiniteLossHook',
        'loss_state': 'LossStateHook',
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
    cfg = config_from(args)
    add_hooks(cfg, HOOKS[mode])
    join_processes(cfg)
    check_config(cfg, mode)
    if mode == 'train':
        check_sync_bn(plain_model(cfg.model))
    apply_flags(cfg, args)
    check_datasets(cfg, *LOADERS[mode])
    if mode == 'train':
        read_teacher_cache(cfg)
    check_data(cfg, mode)  # after all other changes to the data pipelines
    make_folder(cfg.work_dir, '--work-dir')
    return cfg
