import pytest
import torch

from trainers._optimization import Optimization


@pytest.mark.parametrize("name", ["SGD", "ADAM", "ADAMW", "RMSPROP"])
def test_a_parameter_may_get_its_first_gradient_later_than_others(name):
    # As of a branch that no sample took until then; torch's fused SGD would stop there.
    early, late = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    settings = Optimization(optimizer=name, learning_rate=0.1, l2_reg=0.0)
    optimizer = settings.make_optimizer([early, late])
    early.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(late.detach(), torch.ones(3))
    late.grad = torch.full((3,), 2.0)
    optimizer.step()
    alone = torch.nn.Parameter(torch.ones(3))
    reference = settings.make_optimizer([alone])
    alone.grad = torch.full((3,), 2.0)
    reference.step()
    assert torch.equal(late, alone) and not torch.equal(late.detach(), torch.ones(3))
