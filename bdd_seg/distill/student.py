"""From a distiller's settings to those of its plain student."""

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

PLAIN_TYPES = {'SegDistiller': 'EncoderDecoder', 'CascadeSegDistiller': 'CascadeEncoderDecoder'}
"""Type of a distiller → that of its student."""

DISTILLERS_KEYS = ('teacher', 'distill_losses', 'balance_gradients')
"""Settings of a distiller that its student does not have."""


def is_distiller(model: Mapping[str, Any]) -> bool:
    """Return whether the ``model`` settings of a config are those of a distiller."""
    return model.get('type') in PLAIN_TYPES


def plain_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``model`` settings without teacher and losses, with the type of the student alone.

    Settings of another type are returned as they are.
    """
    if not is_distiller(model):
        return dict(model)
    student = {key: value for key, value in model.items() if key not in DISTILLERS_KEYS}
    return {**student, 'type': PLAIN_TYPES[model['type']]}


def plain_config(cfg: Config) -> Config:
    """Return a copy of a whole config in which the student trains alone."""
    cfg = copy.deepcopy(cfg)
    cfg.model = plain_model(cfg.model)
    return cfg
