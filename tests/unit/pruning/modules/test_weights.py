"""Which weights can be pruned, and in which order their layers run."""

import torch
from torch import nn

from pruning.modules.weights import normalised_dimension, prunable_weights
from tests.support.zoo.small import Attention, Residual, bias_free, build, conv_net


def test_linear_and_convolution_weights_only():
    assert prunable_weights(build(conv_net)) == {"0.weight": "0", "3.weight": "3", "6.weight": "6"}
    mixed = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.PReLU())
    assert prunable_weights(mixed) == {"2.weight": "2"}


def test_layers_defined_out_of_order_come_as_they_run():
    model = build(Residual)
    assert list(prunable_weights(model)) == ["head.weight", "branch.weight", "stem.weight"]
    assert list(prunable_weights(model, torch.zeros(1, 2, 5, 5))) == ["stem.weight", "branch.weight", "head.weight"]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_attentions_output_layer_stands_where_attention_runs():
    names = list(prunable_weights(build(Attention), torch.zeros(1, 6, dtype=torch.long)))
    assert names[:2] == ["block.self_attn.in_proj_weight", "block.self_attn.out_proj.weight"]
    assert names[2:] == ["block.linear1.weight", "block.linear2.weight", "head.weight"]


class Auxiliary(nn.Module):
    """A head that runs in training only is defined last, another first; the network sits in a wrapper."""

    def __init__(self):
        super().__init__()
        self.early = nn.Linear(4, 2)
        self.body = bias_free(4, 4, 4, 2)
        self.late = nn.Linear(4, 2)

    def forward(self, x):
        out = self.body(x)
        return (out, self.early(x), self.late(x)) if self.training else out


def test_what_the_example_never_reaches_is_neither_first_nor_last():
    for model, prefix in ((Auxiliary(), ""), (nn.Sequential(Auxiliary()), "0.")):
        names = list(prunable_weights(model.train(), torch.zeros(2, 4)))
        assert names[0] == f"{prefix}body.0.weight" and names[-1] == f"{prefix}body.4.weight"
        assert len(names) == 5
        assert model.training


def test_a_layer_that_runs_twice_stands_where_it_ran_first():
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    assert list(prunable_weights(nn.Sequential(layer, other, layer), torch.zeros(1, 4))) == ["0.weight", "1.weight"]


def test_no_layer_at_all():
    assert prunable_weights(nn.ReLU(), torch.zeros(1)) == {}


def test_the_dimension_that_weight_norm_divides_by():
    norm = nn.utils.parametrizations.weight_norm
    layers = [norm(nn.Linear(3, 4)), norm(nn.Conv2d(3, 4, 2), dim=1), nn.Linear(3, 4), norm(nn.Linear(3, 4), dim=None)]
    found = [next(iter(prunable_weights(layer))) for layer in layers]
    assert [normalised_dimension(layer, name, "") for layer, name in zip(layers, found, strict=True)] == [
        0,
        1,
        None,
        None,
    ]


def test_one_input_under_weight_norm_is_pruned_by_its_length():
    """With one weight a row, a zero weight would be 0 / 0; a zero length is a zero weight."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(1, 5))
    (name,) = prunable_weights(layer)
    with torch.no_grad():
        layer.get_parameter(name)[2] = 0
    assert layer.weight[2] == 0 and torch.isfinite(layer.weight).all()
    assert normalised_dimension(layer, name, "") is None
