"""The flags of mmseg's tools, and the config that they describe."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from bdd_seg.cli.config_check import KNOWN_KEYS
from bdd_seg.errors import ConfigError, similar_to
from bdd_seg.runtime.upstream.configs import load_config, type_name
from bdd_seg.runtime.upstream.console import is_verbose
from bdd_seg.runtime.upstream.processes import LAUNCHERS


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of mmseg's tools that concern the config and the launcher."""
    parser.add_argument('config', help='config file: a path, or PACKAGE::FOLDER/NAME.py of bdd_seg or mmseg')
    parser.add_argument('--work-dir', help='folder for what is written (default: work_dirs/CONFIG_NAME)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        help='override settings of the config: key=value, lists as key="[a,b]" or key=a,b, nested ones as '
        'key="[(a,b),(c,d)]"; the quotation marks are needed, and no white space is allowed in lists',
    )
    parser.add_argument('--launcher', choices=['none', *LAUNCHERS], default='none', help='job launcher')
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by older torch launchers'
    )
    parser.add_argument(
        '--verbose',
        action='store_true',
        default=is_verbose(),
        help='show the whole log on the console; BDD_SEG_VERBOSE=1 shows what imports print as well',
    )


class Options(DictAction):
    """mmengine's ``DictAction``, with error messages, and with spaces in values that are no lists."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for option in values or ():
            key, equals, value = option.partition('=')
            if not (key and equals):
                raise argparse.ArgumentError(self, f'expected key=value, got {option!r}')
            plain = not any(character in value for character in ',[(')
            try:
                options[key] = (
                    self._parse_int_float_bool(value.strip('\'"')) if plain else self._parse_iterable(value)
                )
            except AssertionError as error:
                raise argparse.ArgumentError(self, f'{option!r}: {error}') from error
        setattr(namespace, self.dest, options)


def config_from(args: argparse.Namespace) -> Config:
    """Return the config that the flags of :func:`add_config_arguments` describe.

    Raises:
        ConfigError: There is no such config, an option does not fit into it, or the launcher that is given
            has not started this process.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    launcher = LAUNCHERS.get(args.launcher)
    if launcher is not None and launcher.needs not in os.environ:
        raise ConfigError(
            f'--launcher {args.launcher}: {launcher.needs} is not set. Start the tool by {launcher.command}'
        )
    cfg = load_config(args.config)
    cfg.launcher = args.launcher
    set_options(cfg, args.cfg_options)
    if args.work_dir is not None or cfg.get('work_dir') is None:
        cfg.work_dir = args.work_dir or f'./work_dirs/{Path(args.config).stem}'
    return cfg


def set_options(cfg: Config, options: Mapping[str, Any] | None) -> None:
    """Override settings of a config, as ``--cfg-options`` gives them.

    Raises:
        ConfigError: Nothing reads a key, or a value does not fit into the config.
    """
    for key, value in (options or {}).items():
        _set_option(cfg, key, value)


def _set_option(cfg: Config, key: str, value: Any) -> None:
    """Override one setting.

    Raises:
        ConfigError: Nothing reads the key, or the value does not fit into the config.
    """
    first = key.partition('.')[0]
    if first not in cfg and first not in KNOWN_KEYS:
        holders = [f'{name}.{key}' for name, part in cfg.items() if isinstance(part, dict) and first in part]
        hint = f' Did you mean {holders[0]}?' if holders else similar_to(first, {*cfg, *KNOWN_KEYS})
        raise ConfigError(f'--cfg-options {key}: the config has no {first!r}, and nothing uses it.{hint}')
    try:
        cfg.merge_from_dict({key: value})
    except (AttributeError, KeyError, TypeError) as error:  # a list's position, a key below a number
        reason = ' '.join(str(error.args[0] if error.args else error).split())
        raise ConfigError(f'--cfg-options {key}={value!r} does not fit into the config: {reason}') from error


def add_hooks(cfg: Config, hooks: dict[str, str]) -> None:
    """Add hooks to ``default_hooks``, but for those that the config sets to None or has among its own.

    Args:
        cfg: The whole config, changed in place.
        hooks: The type of each hook, by its name among the ``default_hooks``.
    """
    cfg.default_hooks = cfg.get('default_hooks') or {}
    given = {type_name(hook) for hook in cfg.get('custom_hooks') or []}
    for name, kind in hooks.items():
        if cfg.default_hooks.setdefault(name, dict(type=kind)) is None or kind in given:
            del cfg.default_hooks[name]
        else:
            cfg.default_hooks[name].setdefault('type', kind)  # the config may give arguments only


def make_folder(path: str | Path, flag: str) -> None:
    """Make a folder to write to, if there is none.

    Args:
        path: The folder.
        flag: The flag that gives it.

    Raises:
        ConfigError: It cannot be made, or not be written to.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f'{flag} {str(path)!r} is a file, not a folder') from error
    except OSError as error:
        raise ConfigError(f'{flag} {str(path)!r} cannot be made: {error.strerror}') from error
    if not os.access(path, os.W_OK):
        raise ConfigError(f'{flag} {str(path)!r} cannot be written to')
