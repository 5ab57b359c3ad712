"""Two layers in the place of one: what they compute, what they cost, where they fit, and how they are saved."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from criterions.ALDS import ALDS
from criterions.Magnitude import Magnitude
from criterions.PCA import PCA
from criterions.SNAPit import SNAPit
from criterions.SVD import SVD
from models.ResNet20 import ResNet20
from pruning import DependencyGraph, LayerRules, LowRank, PrunableNetwork, UsageError, keep, load_pruned
from pruning.cut.factorize import blocks_of, factored, truncated
from pruning.export import export
from tests.support.tiers import few, thorough
from tests.support.zoo.small import Attention, Residual, data, tokens
from tests.unit.pruning.test_export import NEEDS_ONNX
from utils.runs.checkpoints import load_network, network_state


class Mixed(nn.Module):
    """What users write: padding by name, dilation, stride, a residual, tokens, a layer called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 12, (3, 5), padding="same", padding_mode="reflect")
        self.second = nn.Conv2d(12, 12, 3, padding=2, dilation=2, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.third = nn.Conv2d(12, 16, 3, stride=(2, 1))
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.first(x).relu()
        x = self.third(x + self.norm(self.second(x)).relu()).relu().flatten(2).transpose(1, 2)  # (B, positions, 16)
        return self.head(self.mix(self.mix(x).relu()).mean(1))


SHAPE = (4, 6, 6)


def mixed(criterion, sparsity=0.4):
    torch.manual_seed(0)
    batches = data(SHAPE)
    network = PrunableNetwork(Mixed().train(), batches[0][0][:1])
    network.note_start()
    network.prune(criterion, batches, sparsity=sparsity)
    return network, batches


def low_rank(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, LowRank)}


# -- one layer ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    parts=st.integers(1, 3), width=st.integers(1, 3), outputs=st.integers(1, 6), kernel=st.integers(1, 3),
    stride=st.integers(1, 2), padding=st.sampled_from([0, 1, "same"]), dilation=st.integers(1, 2), bias=st.booleans(),
    mode=st.sampled_from(["zeros", "circular"]),
)  # fmt: skip
def test_full_rank_is_the_convolution_itself(parts, width, outputs, kernel, stride, padding, dilation, bias, mode):
    how = {"stride": 1 if padding == "same" else stride, "padding": padding, "dilation": dilation, "bias": bias}
    layer = nn.Conv2d(parts * width, outputs, kernel, padding_mode=mode, dtype=torch.double, **how)
    check(layer, parts, torch.randn(2, parts * width, 7, 6, dtype=torch.double))


@settings(max_examples=30, deadline=None)
@given(parts=st.integers(1, 3), width=st.integers(1, 4), outputs=st.integers(1, 6), bias=st.booleans(),
       sizes=st.lists(st.integers(1, 3), max_size=3))  # fmt: skip
def test_full_rank_is_the_linear_layer_itself(parts, width, outputs, bias, sizes):
    layer = nn.Linear(parts * width, outputs, bias=bias, dtype=torch.double)
    check(layer, parts, torch.randn(*sizes, parts * width, dtype=torch.double))


def check(layer, parts, x):
    full = min(blocks_of(layer, parts)[0].shape)
    pair = factored(layer, truncated(layer, full, parts))
    assert pair.rank == full and pair.subspaces == parts
    assert torch.allclose(pair(x), layer(x), atol=1e-10)
    merged = pair.merged()
    assert torch.allclose(merged.weight, layer.weight, atol=1e-10) and merged.bias is layer.bias is pair.decoder.bias
    assert torch.allclose(merged(x), layer(x), atol=1e-10)


@pytest.mark.parametrize("parts", [1, 2])
def test_what_is_cut_off_is_the_tail_of_the_singular_values(parts):
    layer = nn.Conv2d(4, 5, 3, dtype=torch.double)
    before = layer.weight.detach().flatten(1).split(36 // parts, dim=1)
    for rank in range(1, 6):
        after = (
            factored(layer, truncated(layer, rank, parts)).merged().weight.detach().flatten(1).split(36 // parts, dim=1)
        )
        for one, other in zip(before, after, strict=True):
            tail = torch.linalg.eigvalsh(one @ one.T).flip(0)[rank:].clamp_min(0).sum()
            assert float((one - other).square().sum()) == pytest.approx(float(tail), abs=1e-10)


def test_both_factors_have_half_of_the_singular_values():
    layer = nn.Linear(7, 5, dtype=torch.double)
    factors, sizes = truncated(layer, 4), torch.linalg.svdvals(layer.weight)
    for gram in (factors.encoder[0] @ factors.encoder[0].T, factors.decoder.T @ factors.decoder):
        assert torch.allclose(gram, torch.diag(sizes[:4]), atol=1e-10)


# -- in a network ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_decomposed_stays_and_is_named():
    class Odd(Mixed):
        def __init__(self):
            super().__init__()
            self.tied = nn.Linear(4, 16)
            self.tied.weight = nn.Parameter(self.head.weight.T.detach())
            self.again = nn.Linear(4, 16)
            self.again.weight = self.tied.weight
            self.scaled = parametrizations.weight_norm(nn.Linear(16, 16))
            self.read = nn.Linear(16, 16)
            self.away = [self.mix]
            self.grouped = nn.Conv2d(16, 16, 1, groups=4)
            self.flat = nn.Conv1d(16, 16, 1)

        def forward(self, x):
            x = self.tied(super().forward(x)) + self.again(super().forward(x))
            x = x @ self.read.weight + self.away[0](self.scaled(x))
            return self.flat(self.grouped(x[..., None, None])[..., 0])[..., 0]

    torch.manual_seed(0)
    model, x = Odd(), torch.randn(2, *SHAPE)
    keep(model.third)
    network = PrunableNetwork(model, x[:1])
    reason = network.prune(SVD(), sparsity=0.2).steps[0].reason
    whys = ["tied (shared weight)", "scaled (weight is computed, or hooks)", "grouped (groups)", "flat (Conv1d)"]
    for why in [*whys, "third (protected)", "mix, read (not used by calling it, or not on the example)"]:
        assert why in reason, reason
    assert set(low_rank(model)) <= {"first", "second", "head"} and low_rank(model)
    assert model(x).shape == (2, 16)


def test_attention_keeps_the_layers_whose_weights_it_reads():
    model, batches = Attention(), tokens()
    network = PrunableNetwork(model, batches[0][0])
    network.prune(PCA(), batches, sparsity=0.2)
    assert set(low_rank(model)) == {"block.linear1", "block.linear2"}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, padding=1), nn.Linear(4, 6)])
def test_the_weight_can_be_read(layer, parts):
    pair = factored(layer, truncated(layer, 2, parts))
    assert torch.allclose(pair.weight, pair.merged().weight, atol=1e-6) and pair.bias is pair.decoder.bias
    pair.weight.sum().backward()
    assert pair.encoder.weight.grad.any() and pair.decoder.weight.grad.any()


@pytest.mark.parametrize("layers", [1, 2])
def test_fused_transformers_run_on(layers):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model, x = nn.TransformerEncoder(layer, layers).train(), torch.randn(4, 5, 8)
    PrunableNetwork(model, x).prune(ALDS(), sparsity=0.2)
    padding = torch.arange(5) > torch.tensor([[4], [2], [3], [4]])
    model.eval()
    with torch.no_grad():
        fused = model(x, src_key_padding_mask=padding)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            plain = model(x, src_key_padding_mask=padding)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert low_rank(model) and torch.allclose(fused[~padding], plain[~padding], atol=1e-5)


def test_outer_layers_stay_whole_where_they_are_left_out():
    model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(4)))
    network = PrunableNetwork(model, torch.zeros(1, 12), outer_layers=False)
    network.prune(SVD(), sparsity=0.5)
    network.prune(SVD(), sparsity=0.7)
    assert set(low_rank(model)) == {"1", "2"} and 0.7 <= network.reached() < 0.8


def test_masked_weights_are_folded_in():
    torch.manual_seed(0)
    network = PrunableNetwork(Mixed(), torch.zeros(1, *SHAPE))
    network.prune(Magnitude(), sparsity=0.3)
    assert len(network.masks)
    masked, weights = dict(network.masks.keep), {p: network.model.get_submodule(p).weight for p in ("second", "mix")}
    network.prune(SVD(), sparsity=0.31)
    assert network.weights_left() <= 0.69 * network.weights_total()
    for path, module in low_rank(network.model).items():
        assert not any(name.startswith(path) for name in network.masks.keep)
        if path in weights and module.rank == min(weights[path].flatten(1).shape):
            assert not module.merged().weight[~masked[f"{path}.weight"]].any()
    left = network.weights_left()
    network.prune(Magnitude(), sparsity=0.6)  # and the parts can be masked like any weight
    network.prune(SVD(), sparsity=0.8)
    assert network.weights_left() <= 0.2 * network.weights_total() < left
    assert network.model(torch.zeros(2, *SHAPE)).isfinite().all()


@pytest.mark.parametrize("criterion", [SVD(), PCA(), ALDS(max_subspaces=12)])
def test_nodes_can_go_afterwards(criterion):
    network, batches = mixed(criterion, 0.25)
    total, weights = network.nodes_total(), network.weights_left()
    assert network.node_sparsity() == 0
    network.prune(SNAPit(), batches, sparsity=0.4)
    assert network.nodes_left() == int(0.6 * total + 1e-6) and network.weights_left() < weights
    assert network.model(batches[0][0]).isfinite().all()


def in_subspaces():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))


@pytest.mark.parametrize(("parts", "room"), [(2, 95), (8, 150)])  # weights that the layer may have
def test_subspaces_are_used_and_survive_the_removal_of_channels(parts, room):
    torch.manual_seed(0)
    model, batches = in_subspaces(), data((3, 6, 6))
    with torch.no_grad():  # the channels of a part share one kernel, so that so many subspaces of rank 1 are best
        kernels = torch.linalg.qr(torch.randn(8, parts)).Q[:, :, None] * torch.randn(1, parts, 9 * 8 // parts)
        model[2].weight.copy_(kernels.reshape(8, 8, 3, 3))
    keep(model[4])
    keep(model[0])
    network = PrunableNetwork(model, torch.zeros(1, 3, 6, 6))
    network.prune(ALDS(), keep_ratio=room / 576)  # kept layers do not count
    assert set(low_rank(model)) == {"2"} and (model[2].subspaces, model[2].rank) == (parts, 1)
    model[0]._pruning_keep = False
    network.reshaped()  # a new graph, which may cut the first layer
    for channels in (6, 4, 2):  # of two subspaces, both lose one
        while model[0].out_channels > channels:
            network.graph.get_pruning_plan(model[0], idxs=[0]).exec()
        same = load_pruned(in_subspaces(), copy.deepcopy(model.state_dict()))
        assert torch.equal(same(batches[0][0]), model(batches[0][0])) and repr(same) == repr(model)


# -- training goes on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True), lambda p: torch.optim.Adam(p, fused=True),
    lambda p: torch.optim.RMSprop(p, momentum=0.5), lambda p: torch.optim.AdamW([{"params": p}, {"params": []}]),
])  # fmt: skip
def test_optimizers_go_on_in_the_order_of_the_parameters(make):
    torch.manual_seed(0)
    model, batches = Mixed(), data(SHAPE)
    network = PrunableNetwork(model, batches[0][0][:1])
    optimizer = make([p for p in model.parameters() if p.requires_grad])

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
        optimizer.step()

    for sparsity in (0.2, 0.5):
        step()
        bias = model.first.decoder.bias if sparsity > 0.2 and "first" in low_rank(model) else model.first.bias
        remembered = {key: value.clone() for key, value in optimizer.state[bias].items()}
        network.prune_to(PCA(), sparsity, batches, optimizers=[optimizer], cut_along=[{}])
        owned = [p for group in optimizer.param_groups for p in group["params"]]
        assert [id(p) for p in owned] == [id(p) for p in model.parameters()]
        assert {id(p) for p in optimizer.state} <= {id(p) for p in owned}
        assert all(torch.equal(value, optimizer.state[bias][key]) for key, value in remembered.items())
        before = [p.detach().clone() for p in owned]
        step()
        moved = [not torch.equal(p, old) for p, old in zip(owned, before, strict=True)]
        felt = [float(p.grad.abs().max()) > 1e-6 for p in owned]  # a bias before a batch norm has no say
        assert sum(felt) >= len(owned) - 1 and all(m for m, f in zip(moved, felt, strict=True) if f)


def test_what_is_kept_by_name_is_dropped_with_the_weight_and_frozen_stays_frozen():
    model = Mixed()
    model.mix.weight.requires_grad_(False)
    companion = {name: p.detach().clone() for name, p in model.named_parameters()}
    network = PrunableNetwork(model, torch.zeros(1, *SHAPE), layer_rules=LayerRules(only="*"))
    network.prune_to(SVD(), 0.7, cut_along=[companion])
    gone = set(low_rank(model))
    assert {name.rpartition(".")[0] for name in companion}.isdisjoint(gone) and "norm.weight" in companion
    assert not model.mix.encoder.weight.requires_grad and not model.mix.decoder.weight.requires_grad
    with pytest.raises(UsageError, match="Only dicts of tensors"):
        network.prune_to(SVD(), 0.8, cut_along=[Mixed()])


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [SVD(), PCA(), ALDS(max_subspaces=12)])
@pytest.mark.parametrize("nodes", [False, True])
def test_a_file_rebuilds_the_two_layers(criterion, nodes, tmp_path):
    network, batches = mixed(criterion, 0.25)
    if nodes:
        network.prune(SNAPit(), batches, sparsity=0.3)
    file, model = tmp_path / "small.pth", network.model.eval()
    torch.save(model.state_dict(), file)
    loaded = load_pruned(Mixed().eval(), file)
    assert torch.equal(loaded(batches[0][0]), model(batches[0][0]))
    assert {n: p.shape for n, p in loaded.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert repr(loaded) == repr(model)


@pytest.mark.parametrize("kind", [nn.Linear, lambda *sizes: nn.Conv2d(*sizes, 1)])
@pytest.mark.parametrize("after", [[], [1, 4, 8]])
def test_subspaces_of_a_layer_that_had_lost_channels_before(kind, after, tmp_path):
    def make():
        return nn.Sequential(kind(4, 14), nn.ReLU(), kind(14, 20))

    model, x = make(), torch.randn(2, 4) if kind is nn.Linear else torch.randn(2, 4, 3, 3)
    DependencyGraph(model, x).get_pruning_plan(model[0], idxs=[0, 1]).exec()
    model[2] = factored(model[2], truncated(model[2], 2, 3))  # 12 channels in 3 parts, which do not divide 14
    if after:
        DependencyGraph(model, x).get_pruning_plan(model[0], idxs=after).exec()
    torch.save(model.state_dict(), tmp_path / "small.pth")
    loaded = load_pruned(make(), tmp_path / "small.pth")
    assert repr(loaded) == repr(model) and torch.equal(loaded(x), model(x))


def test_a_handle_takes_subspaces_of_a_layer_that_had_lost_channels_before(tmp_path):
    class Three(ALDS):
        def rank_errors(self, network, layers, batches):
            return {path: {3: by_parts[3]} for path, by_parts in super().rank_errors(network, layers, batches).items()}

    network, other = (PrunableNetwork(nn.Sequential(nn.Conv2d(4, 14, 1), nn.ReLU(), nn.Conv2d(14, 20, 1)),
                                      torch.randn(1, 4, 3, 3)) for _ in range(2))  # fmt: skip
    network.graph.get_pruning_plan(network.model[0], idxs=[0, 1]).exec()
    keep(network.model[0])
    network.prune(Three(), sparsity=0.4)
    torch.save(network_state(network), tmp_path / "file")
    load_network(other, torch.load(tmp_path / "file", weights_only=True), tmp_path / "file")
    x = torch.randn(2, 4, 3, 3)
    assert network.model[2].subspaces == 3 and torch.equal(other.model(x), network.model(x))
    assert (other.size(), other.weights_total()) == (network.size(), network.weights_total())


def test_a_file_that_does_not_fit_leaves_the_model_as_it_was():
    network, _ = mixed(SVD(), 0.7)
    state, model = network.model.state_dict(), Mixed()
    before = repr(model)
    cases = {"extra": (torch.zeros(1), "extra is only in one"), "mix._extra_state": (torch.tensor(99), "99 subspaces")}
    for name, (value, message) in cases.items():
        with pytest.raises(UsageError, match=message):
            load_pruned(model, state | {name: value})
        assert repr(model) == before


@pytest.mark.parametrize("criterion", [SVD(), ALDS(max_subspaces=12)])
@pytest.mark.parametrize("nodes", few(["none", "after", "before"], ["before"]))
def test_the_handle_of_a_loaded_network_counts_as_that_of_the_saved(criterion, nodes, tmp_path):
    torch.manual_seed(0)
    batches = data(SHAPE)
    network, other = (PrunableNetwork(Mixed(), batches[0][0][:1]) for _ in range(2))
    for each in (network, other):
        each.note_start()
    if nodes == "before":
        network.prune(SNAPit(), batches, sparsity=0.2)
    network.prune(criterion, sparsity=0.5)
    if nodes == "after":
        network.prune(SNAPit(), batches, sparsity=0.2)
    network.prune(Magnitude(), sparsity=0.8)
    torch.save(network_state(network), tmp_path / "file")
    load_network(other, torch.load(tmp_path / "file", weights_only=True), tmp_path / "file")
    assert torch.equal(other.model(batches[0][0]), network.model(batches[0][0]))
    for count in ("weights_left", "weights_total", "nodes_left", "nodes_total", "layer_sparsities", "size", "flops"):
        assert getattr(other, count)() == getattr(network, count)(), count
    if nodes != "before":  # then the graph knows what it could once cut
        left = [{name: sorted(dims) for name, dims in each.kept_indices().items()} for each in (network, other)]
        assert left[0] == left[1]
    for each in (network, other):
        each.prune(SVD(), sparsity=0.9)
        each.prune(SNAPit(), batches, sparsity=0.5)
    assert torch.equal(other.model(batches[0][0]), network.model(batches[0][0]))


def test_a_residual_network_and_a_shared_path():
    for model, shape in ((ResNet20(num_classes=4, input_shape=(3, 8, 8), width_multiplier=0.5), (3, 8, 8)),
                         (Residual(), (2, 5, 5))):  # fmt: skip
        batches = data(shape)
        network = PrunableNetwork(model, batches[0][0][:1])
        network.prune(PCA(), batches, sparsity=0.2)
        assert low_rank(model) and network.reached() >= 0.2
        assert model(batches[0][0]).shape == (3, 4)


@pytest.mark.parametrize("kind", ["torch_export", pytest.param("onnx", marks=[NEEDS_ONNX, thorough])])
def test_decomposed_layers_can_be_exported(kind, tmp_path):
    network, batches = mixed(ALDS(max_subspaces=12), 0.2)
    layer = nn.Linear(6, 4)  # the one that is no plain Linear then
    model = nn.Sequential(network.model, nn.Linear(4, 6), factored(layer, truncated(layer, 1, 3))).eval()
    written = export(model, batches[0][0], tmp_path / "file", kind)
    assert written.any_batch and written.error < 1e-5
