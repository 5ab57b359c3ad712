"""What SiPP and PFP promise of each layer: against formulas by hand, and against what comes out of many draws."""

import math

import pytest
import torch
from torch import nn

from criterions._guarantee import largest_epsilon, log_term, measured_errors
from criterions._points import draw_points, points_needed
from criterions.PFP import PFP
from criterions.PFPRand import PFPRand
from criterions.PFPTop import PFPTop
from criterions.SiPP import SiPP
from criterions.SiPPRand import SiPPRand
from criterions.UniformWeights import UniformWeights
from pruning import NodeCriterion, PrunableNetwork, UsageError
from tests.support.tiers import few
from tests.support.zoo.small import SHAPES, build, conv_net

DELTA, DRAWS, WIDE, HEAVY = 0.1, 200, 200, 10


def wide_network(generator, *, nodes):
    """A few of many inputs of the last layer, nodes of the layer before if there is one, make most of its output."""
    first, last = nn.Linear(3, WIDE, bias=False), nn.Linear(WIDE, 1)
    sizes = 0.2 / WIDE * (0.5 + torch.rand(WIDE, generator=generator))
    sizes[torch.randperm(WIDE, generator=generator)[:HEAVY]] = 0.8 / HEAVY
    with torch.no_grad():
        first.weight.copy_(0.5 + torch.rand(WIDE, 3, generator=generator))
        last.weight.copy_(sizes[None])
    return nn.Sequential(first, nn.ReLU(), last) if nodes else nn.Sequential(last)


def shuffled(cls):
    """The same criterion with each sensitivity given to another weight or node of the layer."""

    class Shuffled(cls):
        def weight_scores(self, network, batches):
            (score,) = (scores := super().weight_scores(network, batches)).values()
            score.copy_(score[:, self.order(network)])
            return scores

        def sensitivities(self, network, batches):
            sizes, scales = super().sensitivities(network, batches)
            return sizes[self.order(network)], scales

        def order(self, network):
            return torch.randperm(WIDE, generator=torch.Generator().manual_seed(network.number))

    return Shuffled


def promised_and_measured(cls, number):
    """One random network, one S, one draw, one fresh point: epsilon of the last layer, and its error."""
    generator = torch.Generator().manual_seed(number)
    model = wide_network(generator, nodes=issubclass(cls, NodeCriterion))
    width = model[0].in_features
    network = PrunableNetwork(model, torch.zeros(1, width))
    network.number, size = number, points_needed(network, DELTA)
    inputs = 0.2 + torch.rand(size + 1, width, generator=generator)
    options = {"seed": number} if issubclass(cls, (SiPPRand, PFPRand)) else {}
    criterion = cls(points=size, delta=DELTA, **options)
    report = network.prune(criterion, [(inputs, torch.zeros(size + 1))], keep_ratio=0.6)
    row = report.steps[-1].layers[-1]
    return row["epsilon"], row["measured_error"]


@pytest.mark.parametrize("cls", few([SiPP, SiPPRand, PFP, PFPRand], [SiPP]))
def test_promises_are_kept_and_those_of_shuffled_scores_are_not(cls):
    found = torch.tensor([promised_and_measured(cls, number) for number in range(DRAWS)])
    assert float(found[:, 0].max()) < 1 and float(found[:, 1].min()) > 0
    assert float((found[:, 1] <= found[:, 0]).double().mean()) >= 1 - DELTA
    control = torch.tensor([promised_and_measured(shuffled(cls), number) for number in range(DRAWS // 5)])
    assert float((control[:, 1] <= control[:, 0]).double().mean()) < 1 - DELTA


def test_epsilon_is_that_of_the_papers_sample_count_and_of_what_is_cut():
    sizes = torch.tensor([0.3, 0.02, 0.01, 0.0, 0.1, 0.05], dtype=torch.float64)
    parts = torch.tensor([0, 0, 0, 0, 1, 1])
    factors = torch.tensor([1, 50.0, 100.0, 7.0, 1, 1], dtype=torch.float64)  # of chances 1, 0.02, 0.01: m / S = 1
    kept = torch.tensor([True, False, True, True, True, False])
    sampled = largest_epsilon(sizes[:4], factors[:4], kept[:4], parts[:4], log_term(5, 0.2))
    # m = (K / 3) (6 + 2 epsilon) S ln(8 eta / delta) / epsilon^2 with m / S = 1
    assert (6 + 2 * sampled) * math.log(8 * 5 / 0.2) / sampled**2 == pytest.approx(1)
    assert largest_epsilon(sizes[4:], factors[4:], kept[4:], parts[4:], log_term(5, 0.2)) == pytest.approx(3 * 0.05)
    assert largest_epsilon(sizes, factors, kept, parts, log_term(5, 0.2)) == pytest.approx(sampled)
    everything = torch.ones(6, dtype=torch.bool)
    assert largest_epsilon(sizes, torch.ones_like(sizes), everything, parts, 1.0) == 0
    assert largest_epsilon(torch.ones_like(sizes), torch.ones_like(sizes), ~everything, parts, 1.0) == 1  # never more


def largest_error(layer, changed, inputs):
    """By loops over output values: the largest relative change of any part, of all points, filters and positions."""
    worst = 0.0
    for point in inputs:
        for half in (point.clamp_min(0), (-point).clamp_min(0)):
            for sign in (1, -1):
                before, after = (torch.relu(sign * weight) for weight in (layer.weight.detach(), changed))
                patches = half.unfold(1, 2, 2).unfold(2, 2, 2)  # (C, rows, columns, 2, 2)
                for f in range(len(before)):
                    for row in range(patches.shape[1]):
                        for column in range(patches.shape[2]):
                            old, new = (float((w[f] * patches[:, row, column]).sum()) for w in (before, after))
                            worst = max(worst, abs(new - old) / old) if old > 1e-6 else worst
    return worst


def test_measured_errors_are_those_of_loops():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2, stride=2), nn.Flatten(), nn.Linear(27, 2))
    changed, inputs = model[0].weight.detach().clone(), torch.randn(3, 2, 6, 6)
    changed[1, 0], changed[2] = 0, 0
    found = measured_errors(PrunableNetwork(model, inputs[:1]), {"0.weight": changed}, [(inputs, torch.zeros(3))])
    assert found["0.weight"] == pytest.approx(largest_error(model[0], changed, inputs), rel=1e-4)
    changed[2] = 1.5 * model[0].weight[2].detach()
    changed[1, 0] = model[0].weight[1, 0].detach()
    found = measured_errors(PrunableNetwork(model, inputs[:1]), {"0.weight": changed}, [(inputs, torch.zeros(3))])
    assert found["0.weight"] == pytest.approx(0.5, rel=1e-4)


def many(shape, count=300):
    inputs = torch.rand(count, *shape, generator=torch.Generator().manual_seed(3))
    return [(part, torch.zeros(len(part))) for part in inputs.split(64)]


def test_the_report_shows_what_is_kept_promised_and_measured():
    network = PrunableNetwork(build(conv_net), torch.zeros(1, *SHAPES[conv_net]))
    report = network.prune(PFP(), many(SHAPES[conv_net]), keep_ratio=0.7)
    rows = {row["layer"]: row for row in report.steps[-1].layers}
    assert list(rows) == ["0", "3", "6"]
    assert {name: row["kept"] for name, row in rows.items()} == {n[:1]: w.numel() for n, w in network.weights()}
    assert sum(row["budget_share"] for row in rows.values()) == pytest.approx(1)
    assert rows["0"]["epsilon"] == rows["0"]["measured_error"] == 0  # reads the image alone
    assert 0 < max(row["measured_error"] for row in rows.values()) <= max(row["epsilon"] for row in rows.values()) <= 1
    head, *lines = str(report).splitlines()[2:]
    assert head.split() == ["layer", "kept", "of", "budget", "share", "epsilon", "measured", "error"]
    assert len({len(line) for line in [head, *lines[:3]]}) == 1 and lines[2].startswith("  6 ")
    note = " ".join(" ".join(lines[3:]).split())
    assert "cut theorem" in note and "delta = 1e-16 per layer" in note and "fresh points" in note


@pytest.mark.parametrize(("cls", "promising"), [(SiPP, {"6"}), (SiPPRand, {"0", "3", "6"}), (PFPTop, set())])
def test_forms_without_a_theorem_promise_nothing(cls, promising):
    network = PrunableNetwork(build(conv_net), torch.zeros(1, *SHAPES[conv_net]))
    report = network.prune(cls(), many(SHAPES[conv_net]), keep_ratio=0.7)
    rows = report.steps[-1].layers
    assert {row["layer"] for row in rows if row["epsilon"] is not None} == promising
    assert all(row["measured_error"] is not None for row in rows)
    assert str(report).count("no guarantee") == 3 - len(promising)
    assert ("No guarantee for PFPTop" in str(report)) == (cls is PFPTop)


def test_weights_drawn_without_data_have_no_table():
    network = PrunableNetwork(build(conv_net), torch.zeros(1, *SHAPES[conv_net]))
    assert len(str(network.prune(UniformWeights(), keep_ratio=0.5)).splitlines()) == 2


def test_nodes_that_somebody_else_chose_have_no_promise():
    network = PrunableNetwork(build(conv_net), torch.zeros(1, *SHAPES[conv_net]))
    generator = torch.Generator().manual_seed(0)
    step = network.prune_to(PFPRand(), 0.3, many(SHAPES[conv_net]), shuffle=generator)
    assert step.removed and step.layers == []


def test_few_points_allow_a_promise_of_larger_delta_or_none():
    network = PrunableNetwork(build(conv_net), torch.zeros(1, *SHAPES[conv_net]))
    needed, shape = points_needed(network, 1e-16), SHAPES[conv_net]
    enough, few, fewest = (draw_points(network, many(shape, n), None, 1e-16) for n in (3 * needed, 40, 9))
    assert (enough.number, enough.fresh_number, enough.delta) == (needed, needed, 1e-16)
    assert (few.number, few.fresh_number) == (36, 4) and 1e-16 < few.delta < 1 < fewest.delta
    assert points_needed(network, few.delta) == 36
    report = network.prune(PFP(), many(shape, 9), keep_ratio=0.7)
    assert all(row["epsilon"] is None for row in report.steps[-1].layers)
    assert "No guarantee from an S of 9 points" in str(report)


def test_a_loader_that_shuffles_gives_no_point_twice():
    inputs = torch.arange(60.0).view(60, 1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, inputs), batch_size=7, shuffle=True)
    network = PrunableNetwork(nn.Sequential(nn.Linear(1, 2)), torch.zeros(1, 1))
    points = draw_points(network, loader, 20, 1e-16)
    own, fresh = (torch.cat([batch[0] for batch in part]).flatten().tolist() for part in (points.own, points.fresh))
    assert len(own) == len(fresh) == 20 and len({*own, *fresh}) == 40
    with pytest.raises(UsageError, match="given no batches"):
        draw_points(network, [], None, 0.1)


@pytest.mark.parametrize("channel_reduce", ["max", "sum"])
def test_a_channel_of_many_entries_is_promised_as_a_whole(channel_reduce):
    """Where all entries of kernels and of a flatten are alike, the share of a channel is all of them together."""
    model = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.Conv2d(40, 8, 3), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(32, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    network, inputs = PrunableNetwork(model, torch.zeros(1, 1, 6, 6)), torch.ones(300, 1, 6, 6)
    report = network.prune(PFP(channel_reduce=channel_reduce), [(inputs, torch.zeros(300))], keep_ratio=0.97)
    row = report.steps[-1].layers[1]
    lost = row["measured_error"]
    assert 0 < lost < 1 / 3 and row["epsilon"] == pytest.approx(3 * lost, rel=1e-4)


def test_a_run_shows_the_promise_and_keeps_it_when_it_is_resumed(command):
    options = ["--model", "LeNet300", "--prune_criterion", "PFP", "--keep_ratio", "0.5", "--limit_batches", "1"]
    done = command(*options, "--epochs", "2", "--no-tensorboard")
    assert "measured error" in done.out and "cut theorem" in " ".join(done.out.split())
    rows, note = done.result["layers"], done.result["layers_note"]
    assert [row["layer"] for row in rows] == ["layers.0", "layers.3", "layers.6"] and "delta" in note
    assert all(row["measured_error"] <= row["epsilon"] <= 1 for row in rows)
    assert sum(row["kept"] for row in rows) == done.result["weights_left"]
    (done.folder / "result.json").unlink()
    assert command("--resume", str(done.folder)).result["layers"] == rows


def test_a_control_promises_nothing(command):
    controlled = command.quick("--prune_criterion", "SiPP", "--mask_control", "shuffle")
    assert "layers" not in controlled.result and "measured error" not in controlled.out
