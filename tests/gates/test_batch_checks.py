import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from moe_search.gates.batch_checks import cannot_read_values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_numbers_of_a_tensor_are_read_unless_it_has_none(dtype):
    plain = torch.ones(3, 2, dtype=dtype)
    assert not cannot_read_values()
    assert not cannot_read_values(plain, plain[:0])
    assert cannot_read_values(plain, torch.ones(3, dtype=dtype, device="meta"))
    with FakeTensorMode():
        assert cannot_read_values(torch.ones(3, dtype=dtype))


# torch itself warns in the first derivative in forward mode.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_numbers_are_hidden_by_vmap_at_any_level_and_by_no_derivative():
    told = []

    def tells(x):
        told.append(cannot_read_values(x))
        return x.sum()

    x = torch.randn(4, 3)
    for transform, expected in [
        (torch.func.vmap(tells), True),
        (torch.func.grad(tells), False),
        (torch.func.vmap(torch.func.grad(tells)), True),
        (torch.func.grad(lambda y: torch.func.vmap(tells)(y).sum()), True),
        (lambda y: torch.func.jvp(tells, (y,), (y,)), False),
    ]:
        transform(x)
        assert told.pop() is expected
        assert not told


def test_a_tensor_that_is_not_mapped_is_read_within_vmap():
    constant = torch.ones(2)
    told = []
    torch.func.vmap(lambda x: (told.append(cannot_read_values(constant)), x)[1])(torch.randn(3))
    assert told == [False]
