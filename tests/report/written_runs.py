"""Work dirs as a training leaves them, in a moment."""

import json
from pathlib import Path

import torch
from helpers import build
from mmengine.config import Config

from bdd_seg.distill.student import plain_config


def write_run(folder: Path, cfg: Config | Path, iteration: int | None = 6, seed: int = 0, log=True) -> Path:
    """Write a work dir with random weights; with no iteration, without a checkpoint."""
    cfg = Config.fromfile(cfg) if isinstance(cfg, Path) else cfg
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder / 'config.py', cfg)
    if log:
        lines = [
            {'loss': 4.0 - step, 'lr': 0.01, 'time': 0.5, 'iter': step, 'step': step} for step in (1, 2, 3)
        ]
        write_log(folder, '20250101_000000', lines, cfg)
    if iteration is not None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            weights = build(plain_config(cfg)).state_dict()
        meta = {'iter': iteration, 'seed': seed}
        torch.save({'state_dict': weights, 'meta': meta}, folder / f'iter_{iteration}.pth')
    return folder


def write_log(folder: Path, session: str, records: list[dict], cfg: Config | None = None) -> None:
    """Write the scalars of a session, and its config."""
    place = folder / session / 'vis_data'
    place.mkdir(parents=True)
    (place / 'scalars.json').write_text('\n'.join(map(json.dumps, records)) + '\n')
    if cfg is not None:
        write_config(place / 'config.py', cfg)


def write_config(file: Path, cfg: Config) -> None:
    """Write a config without laying it out, which takes half a second."""
    file.write_text('\n'.join(f'{key} = {value!r}' for key, value in cfg.to_dict().items()))
