import copy

import pytest
import torch

from bdd_seg.losses.draws import Draws


def numbers(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


def seeded(seed: int) -> Draws:
    torch.manual_seed(seed)
    return Draws()


def test_each_call_draws_other_numbers_and_each_run_of_a_seed_the_same():
    first, second, other = seeded(0), seeded(0), seeded(1)
    drawn = [numbers(first.next()) for _ in range(5)]
    assert drawn == [numbers(second.next()) for _ in range(5)]
    drawn += [numbers(other.next()) for _ in range(5)]
    assert len({*map(tuple, drawn)}) == 10
    assert first.count.item() == 5


@pytest.mark.parametrize('calls', [0, 1, 7])
def test_goes_on_where_it_was_saved(calls):
    draws = Draws()
    for _ in range(calls):
        numbers(draws.next())
    state = copy.deepcopy(draws.state_dict())
    assert state.keys() == {'seed', 'count'} and state['count'].item() == calls
    expected = [numbers(draws.next()) for _ in range(3)]
    loaded = Draws()
    loaded.next()
    loaded.load_state_dict(state)
    assert [numbers(loaded.next()) for _ in range(3)] == expected


def test_each_process_draws_other_numbers(monkeypatch):
    drawn = []
    for rank in range(4):
        monkeypatch.setattr('bdd_seg.losses.draws.get_rank', lambda rank=rank: rank)
        draws = seeded(0)
        drawn += [numbers(draws.next()) for _ in range(4)]
        assert draws.count.item() == 4
    assert len({*map(tuple, drawn)}) == 16


@pytest.mark.parametrize('later', [1, 65_536, 80_000, 1_000_000])
def test_long_trainings_do_not_draw_the_same_again(later):
    """Of a seed the generator on the CPU takes no more than 32 bits."""
    draws = Draws()
    first = numbers(draws.next())
    draws.count.fill_(later)
    assert numbers(draws.next()) != first


def test_the_global_generator_is_left_alone():
    draws = Draws()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    numbers(draws.next())
    assert torch.equal(torch.rand(3), expected)


def test_the_count_stays_a_whole_number():
    """Half precision would not count beyond 2048."""
    draws = Draws().half().to(torch.bfloat16)
    draws.count.fill_(100_000)
    draws.next()
    assert draws.count.dtype == torch.int64 and draws.count.item() == 100_001
    assert draws.next().device.type == 'cpu'
