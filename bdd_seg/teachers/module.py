"""A teacher from any network that a Python function makes."""

import inspect
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import torch
from mmseg.registry import MODELS
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bdd_seg.distill.taps import LOGITS, Tap, find_taps, import_named
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.seeding import random_state_kept
from bdd_seg.runtime.upstream.atomic_files import file_digest
from bdd_seg.runtime.upstream.checkpoints import (
    find_checkpoint,
    load_and_report_mismatch,
    load_checkpoint,
    weights_of,
)
from bdd_seg.teachers.classes import check_number_of_classes, number_of_classes
from bdd_seg.teachers.network import Network, NetworkTeacher, input_bands
from bdd_seg.teachers.normalise import Statistic, as_data, stated_normalisation, warn_of_unit_range

# The image that tells what a network returns. A multiple of 32, and of the 14 of many vision transformers.
_SIZE = (224, 224)


@MODELS.register_module()
class ModuleTeacher(NetworkTeacher):
    """Any ``nn.Module`` with trained weights: of segmentation-models-pytorch, of timm, or one's own.

    The class logits (N, C, h, w) are what the network returns; of a dict the entry ``'out'``, else
    ``'logits'``; of an object the attribute ``logits``; of a tuple or list the first entry. They are taken as
    such where a loss compares them or ``class_names`` are given.

    Features are tapped by the dotted names of modules. An entry of a dict, tuple or list is tapped by its key
    or number, such as ``'0'``, unless a module has that name.

    Args:
        module: ``'package.module:factory'``, any callable that returns the network. It runs on the CPU, and
            draws no random number of the run.
        arguments: Its keyword arguments.
        checkpoint: The weights: a path or an http(s) URL of a ``.pth``, or the path of a ``.safetensors``
            file. They are loaded strictly. None for those that the factory gives it.
        mean: Of the images it was trained with, whose values are 0 to 255: one number a channel, or one for
            all; None for no normalisation, of images as they are loaded. Must be stated.
        std: The same.
        bgr_to_rgb: Whether it was trained with red first.
        class_names: The classes it was trained for, in the order of its logits.
        **options: As for :class:`~bdd_seg.teachers.NetworkTeacher`.

    Raises:
        ConfigError: ``mean`` or ``std`` is not stated or of another kind, or ``arguments`` is no dict.
    """

    def __init__(
        self,
        module: str,
        arguments: dict[str, Any] | None = None,
        checkpoint: str | Path | None = None,
        mean: Statistic | EllipsisType = ...,
        std: Statistic | EllipsisType = ...,
        bgr_to_rgb: bool = True,
        class_names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not isinstance(module, str):
            raise ConfigError(f"teacher.module must be 'package.module:factory', got {module!r}")
        if arguments is not None and not isinstance(arguments, Mapping):
            raise ConfigError(
                f'teacher.arguments must be a dict, the arguments for {module}, got {arguments!r}'
            )
        self.module = module
        self.arguments = dict(arguments or {})
        self.checkpoint = checkpoint
        self.normalisation = stated_normalisation(mean, std, bgr_to_rgb)
        self.stated_names = checked_names(class_names)

    def describe(self) -> str:
        """Return the name of the factory."""
        return self.module

    def summary(self) -> str:
        """Return the factory's name, the parameters, the precision, and the checkpoint."""
        weights = 'weights of the factory' if self.checkpoint is None else self.checkpoint
        return f'{super().summary()}, {weights}'

    def check(self, student: Mapping[str, Any], classes: Sequence[str] = ()) -> None:
        """Check that the factory can be imported, and ``class_names``.

        Raises:
            ConfigError: It cannot, or they are not those of the student.
        """
        import_named(self.module, 'teacher.module')
        check_stated_names(self, self.stated_names, student, classes)

    def map_channels(self, tap: str | None) -> int:
        """Return the number of channels, by running the network once, without the checkpoint's weights.

        Raises:
            ConfigError: The network cannot be made, cannot run, or has no such map.
        """
        with _other_random_numbers():
            model = self._make()
            modules = [tap] if tap is not None and _is_inside(model, tap) else []
            outputs, maps = self._try(model, modules)
        if tap is None or tap == LOGITS:
            return logits_of(outputs, self.describe()).shape[1]
        if tap not in {**outputs, **maps}:
            find_taps(model, [tap])  # says which names there are
        return {**outputs, **maps}[tap].shape[1]

    def load(self, taps: Sequence[str | None]) -> Network:
        """Make the network, load its weights, and run it once.

        Raises:
            ConfigError: The factory cannot be imported or makes no network, the weights do not fit, the
                network does not run, or returns no class logits where they are wanted.
        """
        with _other_random_numbers():
            model = self._make()
            self._load_weights(model)
            outputs, _ = self._try(model)
        num_classes = None
        if self.stated_names is not None or None in taps or LOGITS in taps:
            num_classes = logits_of(outputs, self.describe()).shape[1]
        check_names_fit(self.stated_names, num_classes, self.describe())
        warn_of_unit_range(self.normalisation)
        inner = [tap for tap in taps if tap is not None and tap != LOGITS]
        entries = []
        if not all(_is_inside(model, tap) for tap in inner):
            entries = [name for name in outputs if not _is_inside(model, name)]
        return Network(
            model=TappedOutputs(model, entries) if entries else model,
            forward=_run,
            logits_tap=None if num_classes is None else LOGITS,
            num_classes=num_classes,
            normalisation=self.normalisation,
            class_names=self.stated_names,
            bands=self._bands(model),
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this teacher from another.

        Returns:
            ``module`` and its ``arguments``; ``checkpoint``: the SHA-256 of its file, None where that is not
            on this machine, a text where there is none; ``normalisation`` of its input; ``precision``; and
            the size and channels of its input where they are set.
        """
        digest: str | None = 'of the factory'
        if self.checkpoint is not None:
            file = find_checkpoint(self.checkpoint)
            digest = None if file is None else file_digest(file)
        return {
            **super().fingerprint(),
            'module': self.module,
            'arguments': json.loads(json.dumps(self.arguments, default=str)),
            'checkpoint': digest,
            'normalisation': as_data(self.normalisation),
        }

    def _make(self) -> nn.Module:
        factory = import_named(self.module, 'teacher.module')
        try:
            inspect.signature(factory).bind(**self.arguments)
        except TypeError as error:
            raise ConfigError(f'teacher.arguments do not fit {self.module}: {error}') from error
        except ValueError:  # nothing tells the arguments of some functions written in C
            pass
        model = factory(**self.arguments)
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f'teacher.module: {self.module} must return an nn.Module, returned a {type(model).__name__}'
            )
        return model.cpu().float().eval()

    def _load_weights(self, model: nn.Module) -> None:
        if self.checkpoint is None:
            return
        source = str(self.checkpoint)
        where = f'teacher ({self.describe()}): checkpoint {source!r}'
        try:
            content = load_file(source) if source.endswith('.safetensors') else load_checkpoint(source)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f'{where} cannot be read: {error}. Copy or download it again') from error
        except ConfigError as error:
            raise ConfigError(f'teacher ({self.describe()}): {error}') from error
        problem = load_and_report_mismatch(model, weights_of(content, where), without=None)
        if problem:
            raise ConfigError(
                f'{where} does not fit: {problem}. Make the network with the arguments it was trained with'
            )

    def _bands(self, model: nn.Module) -> int:
        """Return the number of channels of its images, as far as anything tells: 3 where nothing does."""
        return self.normalisation.bands or input_bands(model) or len(self.input_channels or []) or 3

    def _try(
        self, model: nn.Module, modules: Sequence[str] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run it on a black image, and return the maps among its outputs, and those that modules put out."""
        image = torch.zeros(1, self._bands(model), *(self.input_size or _SIZE))
        with torch.no_grad(), Tap(model, modules) as maps:
            try:
                output = model(image)
            except Exception as error:  # of any kind: the network may be of anyone
                reason = str(error).strip().partition('\n')[0]
                raise ConfigError(
                    f'teacher ({self.describe()}) does not run on images {tuple(image.shape)}: '
                    f'{type(error).__name__}: {reason}. If it takes images of one size only, give '
                    'teacher.input_size=(H, W); if of other channels, a mean and std for each'
                ) from error
        return output_maps(output), maps


class TappedOutputs(nn.Module):
    """A network some of whose outputs can be tapped by their names, and its modules still by theirs.

    Args:
        network: Returns several maps.
        names: The outputs, as :func:`output_maps` names them.
    """

    def __init__(self, network: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.network = network
        self.names = [*names]
        self.outputs = nn.Module()
        for name in self.names:
            owner = self.outputs
            for part in name.split('.'):  # a name with dots is one of modules inside each other
                if part not in dict(owner.named_children()):
                    owner.add_module(part, nn.Identity())
                owner = owner.get_submodule(part)

    def forward(self, images: Tensor) -> Any:
        """Return what the network returns for the images (N, bands, H, W)."""
        output = self.network(images)
        maps = output_maps(output)
        for name in self.names:
            self.outputs.get_submodule(name)(maps[name])
        return output

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = '', remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the outputs, then the network's modules, by the names under which they are tapped."""
        memo = set() if memo is None else memo
        yield prefix, self
        for part in (self.outputs, self.network):  # of equal names, the last counts
            yield from part.named_modules(memo, prefix, remove_duplicate)


def output_maps(output: Any) -> dict[str, Tensor]:
    """Return the maps (N, C, h, w) that a network returns, by key or number; others are left out."""
    if isinstance(output, Mapping):
        entries = {str(key): value for key, value in output.items()}
    elif isinstance(getattr(output, LOGITS, None), Tensor):
        entries = {LOGITS: output.logits}
    else:
        values = output if isinstance(output, list | tuple) else [output]
        entries = {str(number): value for number, value in enumerate(values)}
    return {key: value for key, value in entries.items() if isinstance(value, Tensor) and value.dim() == 4}


def logits_of(maps: Mapping[str, Tensor], teacher: str) -> Tensor:
    """Return the class logits among the outputs of a network.

    Raises:
        ConfigError: None of them is.
    """
    logits = _logits_among(maps)
    if logits is not None:
        return logits
    raise ConfigError(
        f'teacher ({teacher}): it returns no class logits. Expected a tensor (N, C, h, w), a dict with '
        f"'out' or 'logits', an object with logits, or a tuple or list whose first entry they are; found the "
        f'maps {", ".join(maps) or "none"}. Compare features by teacher_tap, or let a factory of your own '
        'return a network with such an output'
    )


def checked_names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the names of a teacher's classes.

    Raises:
        ConfigError: They are no list of texts.
    """
    if names is None:
        return None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f'teacher.class_names must be a list of names, got {names!r}')
    return tuple(names)


def check_names_fit(names: Sequence[str] | None, num_classes: int | None, teacher: str) -> None:
    """Check that there are as many names as logits.

    Raises:
        ConfigError: There are not.
    """
    if names is not None and len(names) != num_classes:
        raise ConfigError(
            f'teacher ({teacher}): it has {len(names)} class names and predicts {num_classes} classes. Give '
            'teacher.class_names a name for each, in the order of its logits'
        )


def check_stated_names(
    teacher: NetworkTeacher,
    names: tuple[str, ...] | None,
    student: Mapping[str, Any],
    classes: Sequence[str],
) -> None:
    """Check that the names that a config states are those of the student's classes, or are mapped to them.

    Args:
        teacher: The teacher.
        names: Those that its config states, None where it does not.
        student: The ``model`` settings of the student.
        classes: The names of the classes of its data, empty where nothing tells.

    Raises:
        ConfigError: They are not.
    """
    if names is None:
        return
    number = number_of_classes(student)
    if number is not None and not teacher.maps_classes:
        check_number_of_classes(len(names), number, teacher.describe())
    if classes:
        teacher.class_names = names
        teacher.check_classes(classes)


def _is_inside(model: nn.Module, tap: str) -> bool:
    """Return whether a tap is a module of the network, or a function that finds modules."""
    return ':' in tap or tap in dict(model.named_modules())


def _run(model: nn.Module, images: Tensor) -> Tensor | None:
    """Run a network, and return its class logits if it has any."""
    return _logits_among(output_maps(model(images)))


def _logits_among(maps: Mapping[str, Tensor]) -> Tensor | None:
    return next((maps[key] for key in ('out', LOGITS, '0') if key in maps), None)


@contextmanager
def _other_random_numbers() -> Iterator[None]:
    """Let a block draw the same random numbers each time, and none of the run's."""
    with random_state_kept():
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        yield
