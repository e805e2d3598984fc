"""Find losses and weights that are not finite, and write the batch that led to them."""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import put
from mmengine.structures import BaseDataElement
from mmengine.utils import is_list_of
from torch import Tensor, nn

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint


@torch.no_grad()
def loss_terms(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the terms of the total loss, by name, as the scalars that ``parse_losses`` adds up.

    Args:
        losses: Tensors of any shape, or lists of tensors, as a model returns them in mode ``'loss'``. Keys
            without ``loss`` are diagnostics and are left out, and so are values of other types, which
            ``parse_losses`` refuses.
    """
    terms = {}
    for name, value in losses.items():
        values = [value] if isinstance(value, Tensor) else value
        if 'loss' in name and values and is_list_of(values, Tensor):
            terms[name] = torch.stack([tensor.mean() for tensor in values]).sum()
    return terms


@torch.no_grad()
def without_gradients(
    losses: Mapping[str, Any], terms: Mapping[str, Tensor], model: nn.Module
) -> dict[str, Any]:
    """Return the same losses with gradients of zeros for all parameters of a model.

    DDP, ``GradScaler`` and the clipping of gradients then work as in any other iteration.
    """
    with torch.enable_grad():
        zero = sum(p.flatten()[:0].sum() for p in model.parameters() if p.requires_grad)
        name = next(iter(terms))
        return {**losses, **terms, name: terms[name] + zero}


def describe_nonfinite(terms: Mapping[str, float], total: float) -> str:
    """Return which of the terms are not finite, as text; their total if each of them is."""
    bad = [f'{name} is {value}' for name, value in terms.items() if not math.isfinite(value)]
    return ', '.join(bad) or f'the sum of the losses is {total}'


def image_paths(batch: Any) -> list[str]:
    """Return the paths of a batch's images, as far as its samples have them.

    Args:
        batch: A batch that :func:`plain_data` has converted.
    """
    samples = batch.get('data_samples') or [] if isinstance(batch, dict) else []
    return [sample['img_path'] for sample in samples if isinstance(sample, dict) and 'img_path' in sample]


def plain_data(value: Any) -> Any:
    """Return the same as tensors on the CPU, dicts, lists and scalars, which loading takes as data."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()  # without the rest of the storage that it may be a view of
    if isinstance(value, np.ndarray):
        return plain_data(torch.from_numpy(value) if value.dtype.kind in 'biuf' else value.tolist())
    if isinstance(value, BaseDataElement):
        return plain_data(dict(value.all_items()))
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def write_batch(path: Path, content: dict[str, Any]) -> str:
    """Write a batch, and return a text that says where it is, or why it could not be written.

    Args:
        path: The file, for ``torch.load(weights_only=True)``.
        content: Plain data.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        put(buffer.getvalue(), path)
    except (ConfigError, OSError) as error:
        return f'the batch could not be written ({error})'
    return f'the batch is in {str(path)!r}'


def weights_are_finite(model: nn.Module) -> bool:
    """Return True if all parameters of a model are finite numbers."""
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def last_finite_checkpoint(noted: str | None, work_dir: str | Path, model: nn.Module) -> str | None:
    """Return the newest checkpoint of a training whose weights are finite.

    A loss shows too late that weights are not finite: a checkpoint may have been saved in between.

    Args:
        noted: The checkpoint saved last, None if this training has saved none.
        work_dir: The folder in which others may be, besides that of the noted one.
        model: The model whose parameters are looked for in the checkpoints.

    Returns:
        Its path, or None if there is none. Checkpoints that cannot be read are passed over.
    """
    if noted is None:
        return None
    folders = {Path(noted).parent, Path(work_dir)}
    others = [
        path for folder in folders for kind in ('iter', 'epoch') for path in folder.glob(f'{kind}_*.pth')
    ]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    names = [name for name, _ in model.named_parameters()]
    for path in dict.fromkeys([Path(noted), *others]):
        try:
            state = load_checkpoint(path).get('state_dict', {})
        except ConfigError:  # gone, or cut short
            continue
        if all(bool(state[name].isfinite().all()) for name in names if name in state):
            return str(path)
    return None
