import numpy as np
import pytest
import torch
from my_loss import LogitsL1


def naive(student: np.ndarray, teacher: np.ndarray, counts: np.ndarray, power: float) -> float:
    """The formula once more, in float64 and with loops."""
    images, classes, height, width = student.shape
    values = []
    for n in range(images):
        for y in range(height):
            for x in range(width):
                if counts[n, y, x]:
                    at = [abs(student[n, c, y, x] - teacher[n, c, y, x]) ** power for c in range(classes)]
                    values.append(sum(at) / classes)
    return sum(values) / len(values)


@pytest.mark.parametrize('power', [1.0, 1.5])
def test_the_value_is_that_of_the_formula(power):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 2, 3, 4, 5))
    label = rng.integers(0, 3, (2, 4, 5))
    label[:, 0] = 255
    loss = LogitsL1(power, loss_weight=2.0, mask_ignored=True)
    value = loss(torch.tensor(student), torch.tensor(teacher), torch.tensor(label))
    assert value.item() == pytest.approx(2 * naive(student, teacher, label != 255, power), rel=1e-12)


def test_gradients():
    student = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda maps: LogitsL1(1.5)(maps, teacher), student)
    LogitsL1()(student, teacher).backward()
    assert teacher.grad is None  # it is a constant


def test_equal_maps_have_no_loss():
    maps = torch.randn(2, 3, 4, 5)
    assert LogitsL1()(maps, maps).item() == 0


def test_a_teacher_on_another_grid_is_resized():
    student, teacher = torch.ones(1, 2, 4, 6), torch.full((1, 2, 2, 3), 3.0)
    assert LogitsL1()(student, teacher).item() == pytest.approx(2)


def test_bfloat16_maps_are_compared_in_float32():
    student, teacher = torch.randn(2, 1, 3, 4, 4).bfloat16()
    value = LogitsL1()(student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(LogitsL1()(student.float(), teacher.float()).item(), rel=1e-6)
