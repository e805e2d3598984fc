"""Load a trained network, whichever kind of file it lies in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bdd_seg.deploy.about import About, about_model
from bdd_seg.deploy.exported import SUFFIXES, ExportedSegmentor
from bdd_seg.distill.student import plain_config
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.runtime.upstream.checkpoints import (
    AUXILIARY,
    load_and_report_mismatch,
    load_checkpoint,
    weights_of,
)
from bdd_seg.runtime.upstream.configs import load_config, walk
from bdd_seg.runtime.upstream.last_checkpoint import latest_checkpoint

_OF_A_TRAINING = ('iter_*', 'epoch_*', 'best_*')  # names of checkpoints


@dataclass(frozen=True)
class Trained:
    """A trained network, ready to predict.

    Attributes:
        model: The segmentor in eval mode, on the CPU, without its teacher and its auxiliary heads.
        about: Facts about it.
        cfg: Its config, in which the student is plain, like the model; None for an exported file.
        file: The file with its weights.
        meta: What a checkpoint tells besides weights: ``dataset_meta``, ``iter``, ``seed`` and others.
    """

    model: BaseSegmentor
    about: About
    cfg: Config | None
    file: Path
    meta: Mapping[str, Any]


def load_trained(
    source: str | Path, checkpoint: str | Path | None = None, device: torch.device | None = None
) -> Trained:
    """Load a network.

    Args:
        source: A config file; a checkpoint (``.pth``, ``.safetensors``) that ``bdd-seg train`` leaves in
            a work dir, or with one config beside it, as ``bdd-seg publish`` and ``export`` write it; a work
            dir, whose latest checkpoint counts; or an exported ``.onnx`` or ``.pt2``.
        checkpoint: The checkpoint of a config file.
        device: On which an exported file runs; by default a GPU if there is one. Others are on the CPU.

    Raises:
        ConfigError: There is no such file, no config beside it or several, or its weights do not fit.
    """
    path = Path(source).expanduser()
    if path.suffix in SUFFIXES:
        model = ExportedSegmentor(path, device=device).eval()
        return Trained(model, model.about, None, path, {})
    config, checkpoint = find_pair(source, checkpoint)
    return trained_of(load_config(config), checkpoint)


def trained_of(cfg: Config, checkpoint: str | Path) -> Trained:
    """Load the network of a config.

    Args:
        cfg: The whole config, which stays as it is.
        checkpoint: A ``.pth`` or ``.safetensors``.

    Raises:
        ConfigError: The checkpoint is missing or damaged, or its weights do not fit.
    """
    cfg = inference_config(cfg)
    model, meta = load_model(cfg, checkpoint)
    return Trained(model, about_model(model, cfg, meta.get('dataset_meta')), cfg, Path(checkpoint), meta)


def inference_config(cfg: Config) -> Config:
    """Return a copy of a whole config with the network that runs once the training is over.

    That is the plain student without auxiliary heads.
    """
    cfg = plain_config(cfg)
    cfg.model.pop(AUXILIARY, None)
    return cfg


def load_model(cfg: Config, checkpoint: str | Path) -> tuple[BaseSegmentor, Mapping[str, Any]]:
    """Build the network of a config with its weights.

    Args:
        cfg: The whole config, as :func:`inference_config` returns it.
        checkpoint: A ``.pth`` or ``.safetensors``.

    Returns:
        The network in eval mode, and what the checkpoint tells besides weights.

    Raises:
        ConfigError: The checkpoint is missing or damaged, or its weights do not fit.
    """
    weights, meta = read_weights(checkpoint)
    model = build_plain(cfg)
    mismatch = load_and_report_mismatch(model, weights)
    if mismatch:
        raise ConfigError(f'{checkpoint} does not fit the model of {cfg.filename}: {mismatch}')
    return model.eval(), meta


def find_pair(source: str | Path, checkpoint: str | Path | None = None) -> tuple[str, str]:
    """Return the config and the checkpoint that ``source`` stands for, as :func:`load_trained` takes it.

    Raises:
        ConfigError: One of them is missing, or there are several.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = latest_checkpoint(path)
        if found is None:
            raise ConfigError(f'{str(path)!r} holds no checkpoint iter_*.pth or epoch_*.pth: train it first')
        return str(config_beside(Path(found))), str(found)
    if path.suffix == '.py' or '::' in str(source):
        if checkpoint is None:
            raise ConfigError(f'{source} is a config: give the checkpoint, too, as in {source} CHECKPOINT')
        return str(source), str(checkpoint)
    if not path.is_file():
        raise ConfigError(
            f'{str(source)!r} does not exist. Give CONFIG.py CHECKPOINT, a checkpoint with its config beside '
            'it, a work dir, or an exported .onnx or .pt2'
        )
    return str(config_beside(path)), str(path)


def config_beside(checkpoint: Path) -> Path:
    """Return the config of a checkpoint: that of the same name beside it, else that of its training.

    A checkpoint that a training wrote has the config of the latest session that trained in its folder. Where
    no such session is left, and for other checkpoints, it is the only config in the folder. A config with the
    name of other weights there, as ``bdd-seg publish`` and ``export`` write it, is theirs.

    Raises:
        ConfigError: There is none, or several of other names.
    """
    same = checkpoint.with_suffix('.py')
    found = [same]
    if not same.is_file():
        by_training = any(checkpoint.match(pattern) for pattern in _OF_A_TRAINING)
        trained = training_config_file(checkpoint.parent) if by_training else None
        found = configs_in(checkpoint.parent) if trained is None else [trained]
    if len(found) != 1:
        listed = f'several configs beside it ({", ".join(path.name for path in found)})'
        raise ConfigError(
            f'{str(checkpoint)!r} has {listed if found else "no config beside it"}. Name the config before '
            'it: CONFIG.py CHECKPOINT'
        )
    return found[0]


def configs_in(folder: Path) -> list[Path]:
    """Return the configs in a folder but those with the name of weights there, in the order of names."""
    return [
        path
        for path in sorted(folder.glob('*.py'))
        if not any(path.with_suffix(suffix).is_file() for suffix in ('.pth', '.safetensors'))
    ]


def training_config_file(work_dir: Path) -> Path | None:
    """Return the config of the latest session in a work dir that trained, None where there is none.

    mmengine keeps a config for each session beside its log. That in the work dir itself may be of a later
    test, which knows no teacher.
    """
    sessions = sorted(work_dir.glob('*/vis_data/config.py'), reverse=True)
    return next((file for file in sessions if _has_trained(file.parent)), None)


def _has_trained(session: Path) -> bool:
    file = session / 'scalars.json'
    if not file.is_file():
        return False
    with file.open() as lines:
        return any('"loss"' in line for line in lines)


def read_weights(checkpoint: str | Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Return the weights of a ``.pth`` or ``.safetensors``, and what else it tells.

    Raises:
        ConfigError: It is missing or damaged, or holds more than weights.
    """
    if Path(checkpoint).suffix == '.safetensors':
        if not Path(checkpoint).is_file():
            raise ConfigError(f'checkpoint {str(checkpoint)!r} does not exist')
        try:
            return load_file(checkpoint), {}
        except SafetensorError as error:
            raise ConfigError(
                f'checkpoint {str(checkpoint)!r} is damaged: {first_line(error)}. Copy it again'
            ) from error
    content = load_checkpoint(checkpoint)
    meta = content.get('meta')
    return weights_of(content, f'checkpoint {str(checkpoint)!r}'), meta if isinstance(meta, dict) else {}


def build_plain(cfg: Config) -> BaseSegmentor:
    """Build the plain network of a config, without weights to be downloaded, in any process.

    Raises:
        ConfigError: The config has no model.
    """
    if cfg.get('model') is None:
        raise ConfigError(f'{cfg.filename} has no model')
    settings = plain_config(cfg).model
    for _, part in walk(settings, 'model'):
        for key in ('init_cfg', 'pretrained'):
            if isinstance(part, dict):
                part.pop(key, None)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'):
        return revert_sync_batchnorm(MODELS.build(settings))
