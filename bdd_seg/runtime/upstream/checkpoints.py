"""Read checkpoints as data, so that no file can run code.

Reason: mmengine falls back to ``weights_only=False`` where a checkpoint holds more than weights, and
``Runner.resume`` runs the text ``meta['config']`` as Python. Both let a hostile file run its code.
``torch.serialization.safe_globals`` is one list for all threads; the first that leaves takes it from the
others. Names of model zoos pass by mmengine's table of loaders, ``torchvision://`` needs torchvision for a
list that mmengine has itself, and without a network both end in a traceback without the address.
Test: tests/runtime/test_security.py, tests/runtime/upstream/test_checkpoints.py.
Goes when: mmengine loads with ``weights_only=True`` only, parses ``meta['config']`` as data, and says which
address it cannot reach.
"""

import hashlib
import io
import os
import pickle
import re
import threading
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

import mmengine
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import barrier
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import (
    CheckpointLoader,
    _get_mmengine_home,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
)
from torch import Tensor, nn

from bdd_seg.errors import ConfigError, similar_to

AUXILIARY = 'auxiliary_head'
"""A module that serves training only. Inference needs no weights for it, and ignores those it is given."""

NO_TENSOR = '_extra_state'  # torch's suffix for what modules save besides their weights

# The first bytes of a file of torch before 1.6, which is no zip archive.
_LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)

_OPENMMLAB, _TORCHVISION, _MMCLS = ('open-mmlab', 'openmmlab'), ('torchvision', 'modelzoo'), ('mmcls',)
_ZOOS = (*_OPENMMLAB, *_TORCHVISION, *_MMCLS)

# What torch admits is one list for all threads: the first that has finished takes it from the others.
_ONE_AT_A_TIME = threading.Lock()


def load_checkpoint(source: str | Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``.

    Besides tensors and plain containers, the types that mmengine's Runner puts into its checkpoints are
    admitted: numpy arrays and scalars, and ``HistoryBuffer``.

    Args:
        source: A path; an http(s) URL, which is downloaded once into torch's hub cache; or the name of a
            model in one of mmengine's lists, as ``open-mmlab://NAME``, ``torchvision://NAME`` and
            ``mmcls://NAME``, of which the last gives the backbone only.
        map_location: Where its tensors go, as in ``torch.load``.

    Returns:
        The checkpoint's content, a dict.

    Raises:
        ConfigError: The file is missing, cannot be downloaded, is damaged, or holds more than data; or
            mmengine's lists have no such name.
    """
    source = str(source)
    address = _address(source)
    path = _download(address, source) if _is_url(address) else Path(address).expanduser()
    if os.path.isdir(path):  # as a method, it has an exception for names that are too long
        raise ConfigError(f'checkpoint {source!r} is a folder. Give the file in it')
    if not os.path.isfile(path):
        raise ConfigError(
            f'checkpoint {source!r} does not exist. Give a file or an http(s) URL, or train that model first'
        )
    try:
        checkpoint = _read(path, map_location)
    except pickle.UnpicklingError as error:
        refused = _unsafe_globals(path)
        if refused is None:
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
    if _scheme(source) in _MMCLS:
        weights = weights_of(checkpoint, f'checkpoint {source!r}')
        prefix = 'backbone.'
        return {
            'state_dict': {
                key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
            }
        }
    return checkpoint


def weights_of(checkpoint: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return the ``state_dict`` in a checkpoint, or the checkpoint itself if it is one.

    Raises:
        ConfigError: It is no dict of named tensors. The message begins with ``where``.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and (isinstance(value, Tensor) or key.endswith(NO_TENSOR))
        for key, value in weights.items()
    ):
        raise ConfigError(f'{where} holds no dict of named tensors')
    return weights


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights and buffers, in hexadecimal, whatever file they come from."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_and_report_mismatch(
    model: nn.Module, weights: Mapping[str, Tensor], without: str | None = AUXILIARY
) -> str:
    """Load weights into a network, and return what does not fit.

    Args:
        model: The network. If something does not fit, it is left with some of the weights.
        weights: Those of a checkpoint; a prefix ``module.``, as wrapped models have it, is taken away.
        without: A module that does not count.

    Returns:
        The keys that are missing, unexpected or of another shape, as a text; empty if all fit.
    """
    weights = {key.removeprefix('module.'): value for key, value in weights.items()}
    own = model.state_dict()
    misshapen = {
        key: f'{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}'
        for key in sorted(own.keys() & weights.keys())
        if not key.endswith(NO_TENSOR) and weights[key].shape != own[key].shape
    }
    # Asks the modules themselves, some of which know older names of their weights.
    missing, unexpected = model.load_state_dict(
        {key: own[key] if key in misshapen else value for key, value in weights.items()}, strict=False
    )
    problems = {'missing': missing, 'unexpected': unexpected, 'of another shape': misshapen}
    texts = []
    for problem, found in problems.items():
        keys = [key for key in found if not (without and key.startswith(f'{without}.'))]
        if keys:
            listed = ', '.join(misshapen.get(key, key) for key in keys[:3])
            texts.append(f'{len(keys)} {problem}: {listed}{", ..." if len(keys) > 3 else ""}')
    return '; '.join(texts)


def unsafe_reason(content: Any) -> str | None:
    """Return why :func:`load_checkpoint` would refuse a file with this content, or None if it would not."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    try:
        _read(buffer, 'cpu')
    except pickle.UnpicklingError:
        buffer.seek(0)
        return _unsafe_globals(buffer) or 'more than data'
    return None


def _unsafe_globals(file: Path | BinaryIO) -> str | None:
    """List what a refused file holds besides data, by name, or return None if it is no checkpoint at all."""
    if isinstance(file, Path):
        with file.open('rb') as opened:
            if opened.read(len(_LEGACY)) == _LEGACY:
                return 'a file of torch before 1.6'
    try:
        with _ONE_AT_A_TIME, torch.serialization.safe_globals(_runner_types()):
            found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # whatever a damaged file, or one in another format, leads to
        return None
    return ', '.join(sorted(found)) or 'builtins.getattr'


def _read(file: Path | BinaryIO, map_location: Any) -> Any:
    with _ONE_AT_A_TIME, torch.serialization.safe_globals(_runner_types()):
        return torch.load(file, map_location=map_location, weights_only=True)


def load_for_mmengine(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a checkpoint for mmengine by :func:`load_checkpoint`.

    ``Runner``'s ``load_from`` and ``resume``, ``init_cfg`` and ``init_model`` come here, for all that
    :func:`load_checkpoint` takes.
    """
    checkpoint = load_checkpoint(filename, map_location)
    meta = checkpoint.get('meta')
    if isinstance(meta, dict):
        # The text of a config, in checkpoints of mmcv 1. Runner.resume runs it as Python; nothing needs it.
        meta.pop('config', None)
    return checkpoint


def apply() -> None:
    """Make :func:`load_for_mmengine` mmengine's loader of local files, of http, and of model zoos."""
    prefixes = ['', *(f'{scheme}://' for scheme in ('http', 'https', *_ZOOS))]
    CheckpointLoader.register_scheme(prefixes=prefixes, loader=load_for_mmengine, force=True)


def find_checkpoint(source: str | Path) -> Path | None:
    """Return where a checkpoint's file is on this machine, or None if it is not there (yet)."""
    address = _address(str(source))
    path = _download_path(address) if _is_url(address) else Path(address).expanduser()
    return path if os.path.isfile(path) else None


def _scheme(source: str) -> str:
    return source.partition('://')[0] if '://' in source else ''


def _address(source: str) -> str:
    """Return the URL or path that the name of a model in a zoo stands for; anything else as it is.

    Raises:
        ConfigError: mmengine's list of that zoo has no such name.
    """
    scheme, name = _scheme(source), source.partition('://')[2]
    if scheme in _OPENMMLAB:
        name, addresses = get_deprecated_model_names().get(name, name), get_external_models()
    elif scheme in _MMCLS:
        addresses = get_mmcls_models()
    elif scheme in _TORCHVISION:
        addresses = mmengine.load(Path(mmengine.__file__).parent / 'hub/torchvision_0.12.json')
    else:
        return source
    if name not in addresses:
        raise ConfigError(
            f"checkpoint {source!r}: mmengine's list has no {name!r}.{similar_to(name, addresses)} Give a "
            'file or an http(s) URL'
        )
    address = addresses[name]
    return address if _is_url(address) else os.path.join(_get_mmengine_home(), address)


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


def _download(url: str, name: str) -> Path:
    """Fetch ``url`` into torch's hub cache, by one process of each machine, and return the file's path.

    Raises:
        ConfigError: It cannot be fetched. The message has the URL, and the name that stands for it.
    """
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
        origin = '' if name == url else f' from {url}'
        raise ConfigError(
            f'checkpoint {name!r} cannot be downloaded{origin} ({failure}). Where there is no network, '
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
    """Stand in for ``builtins.getattr`` in a checkpoint, for the statistics of ``HistoryBuffer`` only."""
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'Unsupported global: getattr({owner!r}, {name!r})')
