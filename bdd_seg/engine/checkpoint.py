"""Checkpoints are data: what is read here cannot run code."""

import hashlib
import io
import os
import pickle
import re
import threading
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import barrier
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from bdd_seg.errors import ConfigError

# What torch admits is one list for all threads: the first that has finished takes it from the others.
_ONE_AT_A_TIME = threading.Lock()


def load_checkpoint(source: str | Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``.

    Besides tensors and plain containers, the types that mmengine's Runner puts into its checkpoints are
    admitted: numpy arrays and scalars, and ``HistoryBuffer``.

    Args:
        source: A path, or an http(s) URL, which is downloaded once into torch's hub cache.
        map_location: Where its tensors go, as in ``torch.load``.

    Returns:
        The checkpoint's content, a dict.

    Raises:
        ConfigError: The file is missing, cannot be downloaded, is damaged, or holds more than data.
    """
    source = str(source)
    path = _download(source) if _is_url(source) else Path(source).expanduser()
    if os.path.isdir(path):  # as a method, it has an exception for names that are too long
        raise ConfigError(f'checkpoint {source!r} is a folder. Give the file in it')
    if not os.path.isfile(path):
        raise ConfigError(
            f'checkpoint {source!r} does not exist. Give a file or an http(s) URL, or train that model first'
        )
    try:
        checkpoint = _read(path, map_location)
    except pickle.UnpicklingError as error:
        refused = what_was_refused(error)
        if refused is None:  # torch says at length that it might be read without weights_only
            raise ConfigError(_damaged(source, path, 'torch cannot read it')) from error
        raise ConfigError(
            f'checkpoint {source!r} holds more than weights and is refused ({refused}). If you trust it, '
            "convert it once: torch.save(torch.load(OLD, weights_only=False)['state_dict'], NEW)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else 'empty'
        raise ConfigError(_damaged(source, path, reason)) from error
    except Exception as error:  # KeyError, IndexError and others, from what is no pickle at all
        raise ConfigError(_damaged(source, path, 'torch cannot read it')) from error
    if not isinstance(checkpoint, dict):
        raise ConfigError(
            f'checkpoint {source!r} holds a {type(checkpoint).__name__}, expected a dict of weights'
        )
    return checkpoint


def what_is_no_data(content: Any) -> str | None:
    """Why :func:`load_checkpoint` would refuse a file with this content, None if it would not."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    try:
        _read(buffer, 'cpu')
    except pickle.UnpicklingError as error:
        return what_was_refused(error) or str(error)
    return None


def what_was_refused(error: pickle.UnpicklingError) -> str | None:
    """The line of torch's message that names what is no data, None if it is about something else."""
    lines = str(error).splitlines()
    return next((line.strip() for line in lines if 'Unsupported global' in line or 'GLOBAL' in line), None)


def _read(file: Path | BinaryIO, map_location: Any) -> Any:
    with _ONE_AT_A_TIME, torch.serialization.safe_globals(_runner_types()):
        return torch.load(file, map_location=map_location, weights_only=True)


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """:func:`load_checkpoint` for mmengine, which would fall back to running the code in a checkpoint.

    ``Runner``'s ``load_from`` and ``resume``, ``init_cfg`` and ``init_model`` come here, for paths and http.
    """
    checkpoint = load_checkpoint(filename, map_location)
    meta = checkpoint.get('meta')
    if isinstance(meta, dict):
        # The text of a config, in checkpoints of mmcv 1. Runner.resume runs it as Python; nothing needs it.
        meta.pop('config', None)
    return checkpoint


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_http(filename: str, map_location: Any = None) -> dict[str, Any]:
    """The same for what is downloaded."""
    return load_from_local(filename, map_location)


def find_checkpoint(source: str | Path) -> Path | None:
    """Where a checkpoint's file is on this machine, None where it is not (yet)."""
    path = _download_path(str(source)) if _is_url(str(source)) else Path(source).expanduser()
    return path if os.path.isfile(path) else None


def _is_url(source: str) -> bool:
    return urlparse(source).scheme in ('http', 'https')


def _download_path(url: str) -> Path:
    name = os.path.basename(urlparse(url).path)
    # Names such as r18-1a2b3c4d.pth tell the content: torch's, torchvision's and OpenMMLab's, whose own
    # downloads are then shared. Any other may mean another file elsewhere.
    if not re.search(r'-[0-9a-f]{8,}\.', name):
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}'
    return Path(torch.hub.get_dir()) / 'checkpoints' / name


def _damaged(source: str, path: Path, reason: str) -> str:
    return (
        f'checkpoint {source!r} is no readable checkpoint (truncated, or not a .pth file): {reason}. '
        f'Copy or download {path} again'
    )


def _download(url: str) -> Path:
    """Fetch ``url`` into torch's hub cache, by one process of each machine, and return the file's path."""
    path = _download_path(url)
    failure = 'the first process of this machine says why'
    if os.environ.get('LOCAL_RANK', '0') == '0' and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))  # writes beside it and moves: whole or not at all
        except (OSError, HTTPException) as error:
            failure = str(error)
    barrier()
    if not path.exists():
        raise ConfigError(
            f'checkpoint {url!r} cannot be downloaded ({failure}). Where there is no network, '
            f'put the file at {path}'
        )
    return path


def _runner_types() -> list[Any]:
    reconstruct = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(code)) for code in '?' + np.typecodes['AllInteger'] + np.typecodes['Float']]
    return [
        np.ndarray,
        np.dtype,
        reconstruct,
        scalar,
        # Files written under numpy 1 name these functions by their old module.
        (reconstruct, 'numpy.core.multiarray._reconstruct'),
        (scalar, 'numpy.core.multiarray.scalar'),
        *dtypes,
        HistoryBuffer,
        ConfigDict,  # a dict, in the meta information of data sets
        (_history_buffer_method, 'builtins.getattr'),
    ]


def _history_buffer_method(owner: Any, name: str) -> Any:
    """What ``builtins.getattr`` may do in a checkpoint: name a statistic of ``HistoryBuffer``."""
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'Unsupported global: getattr({owner!r}, {name!r})')
