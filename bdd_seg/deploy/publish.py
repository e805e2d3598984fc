"""Turn a checkpoint of a training into files for others."""

import hashlib
import io
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mmengine.config import Config
from mmseg.models import BaseSegmentor
from torch import Tensor

from bdd_seg.deploy.about import KEY, About, about_model
from bdd_seg.deploy.card import Notes, Weights, model_card
from bdd_seg.deploy.evaluations import find_evaluations
from bdd_seg.deploy.exported import SUFFIXES
from bdd_seg.deploy.load import build_plain, configs_in, find_pair, read_weights
from bdd_seg.deploy.portable import config_text, portable_config
from bdd_seg.distill.student import is_distiller
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.runtime.upstream.atomic_files import write_atomically
from bdd_seg.runtime.upstream.checkpoints import (
    AUXILIARY,
    load_and_report_mismatch,
    load_checkpoint,
    weights_of,
)
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.runtime.upstream.last_checkpoint import latest_checkpoint
from bdd_seg.teachers.normalise import as_data


@dataclass(frozen=True)
class Published:
    """The files that :func:`publish` has written.

    Attributes:
        weights: The checkpoint, ``NAME-<8 digits of its SHA-256>.pth``.
        config: The config, with the same name.
        card: ``README.md``.
        safetensors: The weights alone, None where they were not asked for.
        bytes_before: Size of the checkpoint that was published.
        averaged: Whether its weights are the average of ``EMAHook``.
        changes: Sentences on the config.
        test: The command that evaluates the checkpoint where no score of it is known; None where one is, or
            where it is no ``.pth``.
    """

    weights: Path
    config: Path
    card: Path
    safetensors: Path | None
    bytes_before: int
    averaged: bool
    changes: list[str]
    test: str | None


def publish(
    checkpoint: str | Path,
    folder: str | Path,
    config: str | Path | None = None,
    notes: Notes | None = None,
    with_safetensors: bool = False,
    replace_card: bool = False,
) -> Published:
    """Write weights and metadata of a checkpoint, the student's plain config, and a model card.

    The weights are those that mmengine evaluates. With ``EMAHook`` these are the averages: its checkpoints
    hold them as ``state_dict``, and those that are trained on as ``ema_state_dict``, which is left out.

    Args:
        checkpoint: A checkpoint, or a work dir, whose latest one counts.
        folder: The folder for the files.
        config: The config of the training, by default the one beside the checkpoint.
        notes: What no file tells.
        with_safetensors: Whether to write the weights as ``.safetensors``, too.
        replace_card: Whether a ``README.md`` with another content may be replaced.

    Raises:
        ConfigError: A file is missing, damaged or holds more than data, or cannot be written; the checkpoint
            does not fit the config; the folder holds checkpoints of a training; or a ``README.md`` is there.
    """
    notes = notes or Notes()
    config, checkpoint = _pair(config, checkpoint)
    out = Path(folder)
    _check_folder(out, Path(checkpoint))
    cfg = load_config(config)
    content = _content(checkpoint)
    model, tensors = _fitted(cfg, content, checkpoint, config)
    meta = content['meta'] if isinstance(content.get('meta'), Mapping) else {}
    if meta.get('mmengine_version'):  # mmengine adds the commit of whatever folder it ran in
        version = re.sub(r'([0-9a-f]{40}|unknown)$', '', str(meta['mmengine_version']))
        meta = {**meta, 'mmengine_version': version}
    weights = Weights(
        meta,
        averaged='ema_state_dict' in content,
        distilled=is_distiller(cfg.model) or bool(meta.get('distilled')),
        parameters=_parameters(model, tensors),
    )
    about = about_model(model, cfg, meta.get('dataset_meta'))
    portable = portable_config(cfg)
    if not _has(tensors, AUXILIARY):
        portable.settings['model'].pop(AUXILIARY, None)
    text = config_text(portable.settings)
    _check_config(text, tensors)
    contents = {'.pth': _checkpoint_bytes(_metadata(weights, about), tensors)}
    if with_safetensors:
        facts = {'format': 'pt', KEY: about.model_dump_json()}
        contents['.safetensors'] = safetensors.torch.save(tensors, facts)
    name = f'{notes.name or _default_name(Path(config))}-{hashlib.sha256(contents[".pth"]).hexdigest()[:8]}'
    files = {f'{name}{suffix}': content for suffix, content in contents.items()}
    evaluations = find_evaluations(Path(checkpoint), meta, cfg)
    card = model_card(name, cfg, about, weights, files, portable.changes, notes, evaluations)
    files |= {f'{name}.py': text.encode(), 'README.md': card.encode()}
    _write(out, files, replace_card)
    return Published(
        weights=out / f'{name}.pth',
        config=out / f'{name}.py',
        card=out / 'README.md',
        safetensors=out / f'{name}.safetensors' if with_safetensors else None,
        bytes_before=Path(checkpoint).stat().st_size,
        averaged=weights.averaged,
        changes=portable.changes,
        test=None
        if evaluations or Path(checkpoint).suffix != '.pth'
        else _test_command(Path(config), checkpoint),
    )


def _default_name(config: Path) -> str:
    """Return the name of a config, without the digits that a published one has."""
    config = _in_work_dir(config)
    name = config.parents[2].resolve().name if _of_session(config) else config.stem
    return re.sub(r'-[0-9a-f]{8}$', '', re.sub(r'[^\w.+-]', '_', name))


def _test_command(config: Path, checkpoint: str) -> str:
    """Return the command that evaluates a checkpoint.

    The scores come to lie where they are looked for, unless that would replace the config itself.
    """
    folder = Path(checkpoint).parent
    flag = [] if config.resolve().parent == folder.resolve() else ['--work-dir', str(folder)]
    return shlex.join(['bdd-seg', 'test', str(_in_work_dir(config)), checkpoint, *flag])


def _in_work_dir(config: Path) -> Path:
    """Return the only config in the work dir of a session, which has its own name, else the given one."""
    found = configs_in(config.parents[2]) if _of_session(config) else []
    return found[0] if len(found) == 1 else config


def _of_session(config: Path) -> bool:
    """Return whether a config is the one beside the log of a session, all of which are ``config.py``."""
    return config.match('*/vis_data/config.py')


def _check_folder(out: Path, checkpoint: Path) -> None:
    """Check that a published config does not come to lie beside checkpoints of a training.

    Raises:
        ConfigError: The folder is a work dir, or that of the checkpoint: their config would not be the only
            one any more.
    """
    work_dir = any(next(out.glob(pattern), None) for pattern in ('iter_*.pth', 'epoch_*.pth'))
    if work_dir or out.resolve() == checkpoint.parent.resolve():
        raise ConfigError(
            f'{str(out)!r} holds checkpoints of a training, whose config would not be the only one there any '
            f'more. Choose another folder, such as {str(out / "published")!r}'
        )


def _checkpoint_bytes(meta: dict[str, Any], weights: dict[str, Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save({'meta': meta, 'state_dict': weights}, file)
    return file.getvalue()


def _pair(config: str | Path | None, checkpoint: str | Path) -> tuple[str, str]:
    """Return the config and the checkpoint.

    Raises:
        ConfigError: One of them is missing, or the checkpoint is another kind of file.
    """
    if Path(checkpoint).suffix in ('.py', *SUFFIXES):
        raise ConfigError(
            f'{str(checkpoint)!r} is no checkpoint. Give a .pth or a work dir, and its config as --config'
        )
    if config is None:
        return find_pair(checkpoint)
    found = latest_checkpoint(checkpoint) if Path(checkpoint).is_dir() else checkpoint
    if found is None or not Path(found).is_file():
        raise ConfigError(f'{str(checkpoint)!r} is no checkpoint, and no work dir that holds one')
    return str(config), str(found)


def _content(checkpoint: str) -> Mapping[str, Any]:
    """Return what a checkpoint holds."""
    if Path(checkpoint).suffix == '.safetensors':
        return {'state_dict': read_weights(checkpoint)[0]}
    return load_checkpoint(checkpoint)


def _fitted(
    cfg: Config, content: Mapping[str, Any], checkpoint: str, config: str
) -> tuple[BaseSegmentor, dict[str, Tensor]]:
    """Return the plain network with its weights, and these, under the names that it has for them.

    Those of a head that serves training only are left out, unless all are there.

    Raises:
        ConfigError: Others are missing, or do not fit.
    """
    model = build_plain(cfg)
    given = weights_of(content, f'checkpoint {checkpoint!r}')
    mismatch = load_and_report_mismatch(model, given)
    if mismatch:
        raise ConfigError(f'{checkpoint} does not fit the model of {config}: {mismatch}')
    partial = load_and_report_mismatch(model, given, without=None)
    # Cloned, since a tensor that is a part of a larger one would be saved with all of it.
    weights = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    if partial:
        weights = {key: value for key, value in weights.items() if not key.startswith(f'{AUXILIARY}.')}
    return model, weights


def _has(weights: Mapping[str, Tensor], module: str) -> bool:
    return any(key.startswith(f'{module}.') for key in weights)


def _check_config(text: str, weights: Mapping[str, Tensor]) -> None:
    """Check that the config can be read again, and that its model takes the weights.

    Raises:
        ConfigError: It cannot, or does not.
    """
    try:
        build_plain(Config.fromstring(text, '.py')).load_state_dict(weights, strict=True)
    except Exception as error:  # of any kind, from a value that a text cannot tell
        raise ConfigError(
            f'the config cannot be published, since it does not fit into one file: {first_line(error)}'
        ) from error


def _metadata(weights: Weights, about: About) -> dict[str, Any]:
    """Return what the file tells besides weights, as plain data that mmseg's ``init_model`` reads."""
    kept = ('iter', 'epoch', 'seed', 'mmengine_version')
    return {
        **{key: weights.meta[key] for key in kept if weights.meta.get(key) is not None},
        'distilled': weights.distilled,
        'dataset_meta': {
            'classes': list(about.classes),
            'palette': [list(colour) for colour in about.palette],
        },
        'normalisation': as_data(about.normalisation),
    }


def _parameters(model: BaseSegmentor, weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the number of parameters that predict, and of those that serve training only."""
    counts = {name: parameter.numel() for name, parameter in model.named_parameters() if name in weights}
    training = sum(count for name, count in counts.items() if name.startswith(f'{AUXILIARY}.'))
    return sum(counts.values()) - training, training


def _write(folder: Path, files: Mapping[str, bytes], replace_card: bool) -> None:
    """Write all files, the card last.

    Raises:
        ConfigError: One cannot be written, or another card is there.
    """
    card = folder / 'README.md'
    if card.exists() and not replace_card and card.read_bytes() != files[card.name]:
        raise ConfigError(f'{str(card)!r} exists. Choose another folder, or replace it with --force')
    for file, content in ((folder / name, content) for name, content in files.items()):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, content)
        except OSError as error:
            raise ConfigError(f'{str(file)!r} cannot be written: {error.strerror}') from error
