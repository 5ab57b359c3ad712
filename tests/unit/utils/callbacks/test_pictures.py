"""What the pictures say is what there is, and can be read."""

import random

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import main
from criterions.Magnitude import Magnitude
from criterions.SNAP import SNAP
from criterions.UnstructuredRandom import UnstructuredRandom
from pruning import PrunableNetwork
from tests.support.tiers import few
from tests.support.zoo.small import SHAPES, build, conv_net, data, mlp
from utils.callbacks import pictures
from utils.callbacks.recorder import score_curve


def network_of(maker=conv_net, sparsity=0.7, criterion=None):
    network = PrunableNetwork(build(maker), torch.zeros(2, *SHAPES[maker]))
    network.prune(criterion or Magnitude(), data(SHAPES[maker]), sparsity=sparsity)
    return network


def widths(axes):
    """Lengths of the bars: all light ones, then all dark ones."""
    lengths = [bar.get_width() for bar in axes.patches]
    return lengths[: len(lengths) // 2], lengths[len(lengths) // 2 :]


def test_layers_show_the_weights_and_the_nodes_that_are_left():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2), nn.Flatten(), nn.Linear(294, 5))
    network = PrunableNetwork(model, torch.zeros(1, 1, 8, 8))
    masks = {name: torch.ones_like(weight).bool() for name, weight in network.prunable().items()}
    masks["0.weight"][1:3] = False
    masks["2.weight"][:, 5] = False
    masks["4.weight"][:, ::2] = False
    network.masks.set(masks)
    left, right = pictures.draw_layers(network, weights=True, nodes=True).axes
    assert widths(left) == ([1, 1, 1], pytest.approx([0.5, 5 / 6, 0.5]))
    assert widths(right) == ([4, 6, 5], [2, 5, 5])
    assert [text.get_text() for text in right.texts] == ["2 of 4", "5 of 6", "5 of 5"]
    assert [text.get_text() for text in left.texts] == ["50.0% removed", "16.7% removed", "50.0% removed"]


def test_layers_that_were_cut_are_compared_with_their_start():
    network = network_of(mlp, 0.5, SNAP())
    before, after = widths(pictures.draw_layers(network, weights=False, nodes=True).axes[0])
    assert before == [7, 5, 4]
    assert after == [network.model[0].out_features, network.model[4].out_features, 4] and after[0] + after[1] == 6


@pytest.mark.parametrize("layers", few([1, 3, 160], [1, 3]))
def test_names_of_any_number_of_layers_can_be_read(layers):
    blocks = nn.ModuleDict(
        {f"a_block_with_a_long_name_{i}": nn.ModuleDict({"fc": nn.Linear(4, 4)}) for i in range(layers)}
    )

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = blocks

        def forward(self, x):
            for block in self.blocks.values():
                x = block["fc"](x)
            return x

    figure = pictures.draw_layers(PrunableNetwork(Deep(), torch.zeros(1, 4)), weights=True, nodes=True)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == layers and all(box.x0 >= 0 for box in boxes)
    assert all(upper.y0 >= lower.y1 for upper, lower in zip(boxes[:-1], boxes[1:], strict=True))
    for axes in figure.axes:
        assert all(text.get_window_extent().x1 <= axes.get_window_extent().x1 for text in axes.texts)


def test_the_curve_of_scores_splits_where_the_threshold_is():
    network = network_of()
    curve = score_curve(network, network.last_scores)
    scores = sorted((float(s) for score in network.last_scores.values() for s in score.flatten()), reverse=True)
    kept = [row["score"] for row in curve if row["kept"]]
    assert [row["score"] for row in curve] == pytest.approx(scores)
    assert len(kept) == network.weights_left()
    axes = pictures.draw_overview([{"epoch": 1, **FIGURES}], [0], curve).axes[1]
    assert axes.get_yscale() == "log"
    assert f"threshold {min(kept):.3g}" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_choice_layer_by_layer_has_no_single_threshold():
    network = network_of(criterion=UnstructuredRandom(distribution="uniform"))
    curve = score_curve(network, network.last_scores)
    axes = pictures.draw_overview([{"epoch": 1, **FIGURES}], [0], curve).axes[1]
    assert any("no single threshold" in text.get_text() for text in axes.get_legend().get_texts())


def test_of_many_scores_a_sample_is_drawn():
    network = PrunableNetwork(nn.Sequential(nn.Linear(1000, 500), nn.ReLU(), nn.Linear(500, 10)), torch.zeros(1, 1000))
    network.prune(Magnitude(), sparsity=0.9)
    curve = score_curve(network, network.last_scores)
    assert len(curve) <= 402
    assert max(row["share"] for row in curve if row["kept"]) == pytest.approx(0.1, abs=0.005)
    assert [row["share"] for row in curve] == sorted({row["share"] for row in curve})


def test_nodes_have_a_curve_too():
    network = network_of(mlp, 0.5, SNAP())
    curve = score_curve(network, network.last_scores)
    assert [row["kept"] for row in curve] == [1.0] * 6 + [0.0] * 6


FIGURES = {"test_accuracy": 0.5, "train_accuracy": 0.6, "weight_sparsity": 0.9}


def test_events_are_marked_where_they_fell():
    rows = [{"epoch": epoch, **FIGURES} for epoch in range(1, 7)]
    axes = pictures.draw_overview(rows, [0, 2, 2, 4], []).axes[0]
    marks = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
    assert marks == [0, 3, 5]  # an event during epoch 2 comes at its end, when 3 are done


def test_a_measure_that_is_no_fraction_has_a_scale_of_its_own():
    rows = [
        {"epoch": e, "test_perplexity": 90.0 / e, "train_perplexity": 80.0 / e, "weight_sparsity": 0.5} for e in (1, 2)
    ]
    figure = pictures.draw_overview(rows, [0], [], "perplexity")
    left, _, own = figure.axes
    assert left.get_ylim() == (0, 1.02) and own.get_ylim()[1] > 80
    assert [list(line.get_ydata()) for line in own.lines] == [[90.0, 45.0], [80.0, 40.0]]
    named = [text.get_text() for text in own.get_legend().get_texts()]
    assert named == ["weight sparsity", "pruning", "test perplexity", "train perplexity"]
    assert pictures.draw_overview([{"epoch": 1, **FIGURES}], [], []).axes[0].get_legend() is not None


def test_an_empty_run_has_pictures_as_well():
    figure = pictures.draw_overview([], [], [])
    assert figure.axes[1].get_title() == "no scores: no event ranked anything"


def test_saliency_is_the_slope_of_the_loss_and_leaves_no_trace():
    network = PrunableNetwork(build(conv_net, dtype=torch.float64), torch.zeros(1, 2, 5, 5).double())
    network.model.train()
    batch = (torch.randn(8, 2, 5, 5).double(), torch.arange(8) % 4)
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    shown, slopes = pictures.input_saliency(network, batch)
    assert network.model.training and all(p.grad is None for p in network.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.model.state_dict().items())
    assert torch.equal(shown, batch[0][:6].float())
    network.model.eval().requires_grad_(False)
    for _ in range(5):
        sample, row, column = random.randrange(6), random.randrange(5), random.randrange(5)
        found = []
        for channel in range(2):
            moved = batch[0][:6].clone()
            moved[sample, channel, row, column] += 1e-6
            above = network.loss(network.model(moved), batch[1][:6])
            moved[sample, channel, row, column] -= 2e-6
            found.append(abs(float(above - network.loss(network.model(moved), batch[1][:6]))) / 2e-6)
        assert float(slopes[sample, row, column]) == pytest.approx(max(found), rel=1e-4, abs=1e-8)


def test_inputs_that_are_no_pictures_have_no_saliency():
    network = network_of(mlp)
    assert pictures.input_saliency(network, data(SHAPES[mlp])[0]) is None
    assert pictures.draw_saliency(None) is None


def test_a_run_leaves_pictures_in_its_folder_and_in_tensorboard(tmp_path):
    quick = ["--hidden", "16", "--epochs", "2", "--limit_batches", "2", "--quiet", "--results_dir", str(tmp_path)]
    assert main.main([*quick, "--track_weights", "--no-netplot", "--no-confusion", "--no-histograms"]) == 0
    (folder,) = tmp_path.iterdir()
    drawn = {path.stem for path in (folder / "output").glob("*.png")}
    assert drawn == {"overview", "layers", "saliency"}
    events = EventAccumulator(str(folder / "summary")).Reload()
    assert set(events.Tags()["images"]) == drawn and events.Tags()["histograms"] == []
    (shown,) = events.Images("layers")
    assert shown.encoded_image_string == (folder / "output" / "layers.png").read_bytes()
    assert (shown.width, shown.height) == size_of(shown.encoded_image_string)
    assert "tracked_weights/layers.0.weight sign_flips" in events.Tags()["scalars"]


def size_of(png):
    from io import BytesIO

    from PIL import Image

    return Image.open(BytesIO(png)).size
