"""What the tests of several kinds of teachers share."""

import pytest
import torch
from helpers import build


@pytest.fixture(scope='module')
def student(tiny_configs):
    return build(tiny_configs['student'])


@pytest.fixture
def images():
    """(2, 3, 32, 64) as they are loaded."""
    return torch.randint(0, 256, (2, 3, 32, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def inputs(student, images):
    """The images as the student receives them."""
    return student.data_preprocessor({'inputs': [*images.to(torch.uint8)]})['inputs']
