"""Attacks: held to attacks by hand, to what must hold by construction, and to wrong inputs."""

import json
import math
from typing import get_args

import pytest
import scipy.stats
import torch
from torch import nn

from pruning import UsageError
from testers._adversarial_report import curve
from testers._attacks import ATTACKS, EPSILONS, ORDERS, check_fits, make, perturbations
from testers._intervals import difference, wilson
from testers._memory import memory_advice
from testers._pixels import OnPixels, Pixels, clean_pass
from testers.AdversarialEvaluation import AdversarialEvaluation, Name
from tests.support.running import write_plug_in
from tests.support.tiers import later

LATER = ["--run_name", "zz"]


def network(classes=3, shape=(1, 4, 4)):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 12), nn.Tanh(), nn.Linear(12, classes))
    return inner.eval()


def drawn(model, samples=40, shape=(1, 4, 4)):
    """Images in [0, 1] with the classes that the network gives them."""
    images = torch.rand(samples, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, model(images).argmax(1)


def test_names_on_the_command_line_are_those_of_the_table():
    assert set(get_args(Name)) == {*ATTACKS, "all"}
    for attack in ATTACKS.values():
        found = make(attack, 10)
        assert attack.norm in ORDERS and attack.norm in EPSILONS
        assert hasattr(found, "distance") and found.distance.p == ORDERS[attack.norm]


def test_fgsm_by_hand():
    model = network()
    images, labels = drawn(model)
    for size in (0.02, 0.1, 0.3):
        wanted = images.clone().requires_grad_()
        nn.functional.cross_entropy(model(wanted), labels, reduction="sum").backward()
        by_hand = (images + size * wanted.grad.sign()).clamp(0, 1)
        fooled = model(by_hand).argmax(1) != labels
        needed, changed = perturbations(model, ATTACKS["FGSM"], images, labels, epsilons=[size], carlini_steps=1)
        assert torch.equal(needed.isfinite(), fooled)
        torch.testing.assert_close(changed[fooled], by_hand[fooled])
        assert torch.equal(changed[~fooled], images[~fooled])
    assert fooled.any()


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_stays_within_its_size_and_changes_the_class(name):
    # As networks are attacked: scores of 64 bits, images of 32.
    model, attack = OnPixels(network(), Pixels(None)).eval(), ATTACKS[name]
    images, labels = drawn(model)
    sizes = [0.0, *(size * (0.2 if attack.norm == "L1" else 1) for size in EPSILONS[attack.norm][1:])]
    before = torch.get_rng_state()
    needed, changed = perturbations(model, attack, images, labels, epsilons=sizes, carlini_steps=30)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    hit = needed.isfinite()
    assert hit.any() and (needed[hit] > 0).all()
    assert changed.min() >= 0 and changed.max() <= 1
    with torch.no_grad():
        assert (model(changed[hit]).argmax(1) != labels[hit]).all()
    true_sizes = (changed - images).flatten(1).norm(ORDERS[attack.norm], dim=1)
    assert (true_sizes[hit] <= needed[hit] * (1 + 1e-4) + 1e-6).all()
    again, _ = perturbations(model, attack, images, labels, epsilons=sizes, carlini_steps=30)
    assert torch.equal(needed, again), "the same draws each time"


def test_pgd_succeeds_more_often_the_larger_the_size_and_never_at_0():
    model = network()
    images, labels = drawn(model)
    needed, _ = perturbations(
        model, ATTACKS["LinfPGD"], images, labels, epsilons=[0.3, 0.0, 0.05, 0.1], carlini_steps=1
    )
    found = curve("Linf", needed, [0.0, 0.05, 0.1, 0.3], 0.8)
    assert found["success"][0] == 0 and found["robust"][0] == 0.8
    assert found["success"] == sorted(found["success"]) and found["success"][1] < found["success"][-1]
    assert found["robust"] == [pytest.approx(0.8 * (1 - rate)) for rate in found["success"]]


def test_a_network_that_is_sure_of_itself_is_no_harder_to_attack():
    """Its loss is flat in 32 bits: there, attacks find nothing, however weak the network is."""
    plain = network()
    sure = nn.Sequential(*plain[:-1], nn.Linear(12, 3)).eval()
    sure[-1].weight.data, sure[-1].bias.data = plain[-1].weight.data * 150, plain[-1].bias.data * 150
    images, labels = drawn(plain)
    found = []
    for model in (plain, sure):
        on_pixels = OnPixels(model, Pixels(None)).eval()
        needed, _ = perturbations(on_pixels, ATTACKS["FGSM"], images, labels, epsilons=[0.2], carlini_steps=1)
        found.append(int(needed.isfinite().sum()))
    flat, _ = perturbations(sure, ATTACKS["FGSM"], images, labels, epsilons=[0.2], carlini_steps=1)
    assert int(flat.isfinite().sum()) < found[0]
    assert found[1] >= 0.9 * found[0]


def test_curve_by_hand():
    found = curve("L2", torch.tensor([0.5, math.inf, 2.0, 0.1]), [0.0, 0.1, 1.0, 5.0], 0.9)
    assert found["success"] == [0, 0.25, 0.5, 0.75]
    assert found["robust"] == pytest.approx([0.9, 0.675, 0.45, 0.225])
    assert found["median_perturbation"] == 0.5
    low, high = scipy.stats.binomtest(2, 4).proportion_ci(method="wilson")
    assert found["robust_interval"][2] == pytest.approx((0.9 * (1 - high), 0.9 * (1 - low)))
    assert found["success_interval"][0] == (0, 0)
    assert curve("L2", torch.full((3,), math.inf), [1.0], 1.0)["median_perturbation"] is None


@pytest.mark.parametrize(("hits", "samples"), [(0, 1), (0, 50), (3, 7), (50, 50), (999, 1000), (500, 1000)])
def test_wilson_interval_is_scipys(hits, samples):
    wanted = scipy.stats.binomtest(hits, samples).proportion_ci(method="wilson")
    assert wilson(hits, samples) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert wilson(0, 0) == (0, 1)


def test_interval_of_a_difference_covers_as_often_as_it_says():
    rng = torch.Generator().manual_seed(3)
    shares, samples, covered = (0.9, 0.8), 60, 0
    for _ in range(400):
        hits = [int((torch.rand(samples, generator=rng) < share).sum()) for share in shares]
        both = [(count / samples, wilson(count, samples)) for count in hits]
        low, high = difference(*both[0], *both[1])
        covered += low <= shares[0] - shares[1] <= high
    assert 0.92 <= covered / 400 <= 0.985


class FakeBatches(list):
    """Test batches with a normaliser, as `make_batches` gives them."""

    def __init__(self, inputs, targets, mean=0.0, std=1.0):
        class normalise:  # noqa: N801
            pass

        normalise.mean, normalise.std = torch.tensor([[[mean]]]), torch.tensor([[[std]]])
        self.normalise = normalise
        super().__init__(zip((inputs - mean).div(std).split(7), targets.split(7), strict=True))


@pytest.mark.parametrize(("factor", "offset"), [(1.0, 0.0), (8.0, -3.0)])
def test_pixels_go_there_and_back(factor, offset):
    raw = torch.rand(20, 1, 4, 4) * factor + offset
    raw[0, 0, 0, :2] = torch.tensor([offset, offset + factor])
    batches = FakeBatches(raw, torch.zeros(20, dtype=torch.long), mean=0.3, std=0.5)
    pixels, model = Pixels(batches), network()
    right = clean_pass({"one": model}, batches, pixels, lambda items, what: items)["one"]
    inputs = torch.cat([inputs for inputs, _ in batches])
    with torch.no_grad():
        assert torch.equal(right, model(inputs).argmax(1) == 0)
        torch.testing.assert_close(pixels.of(inputs), (raw - offset) / factor)
        torch.testing.assert_close(OnPixels(model, pixels)(pixels.of(inputs)), model(inputs).double())
    assert ("from 0 to 1" in pixels.describe()) == (factor == 1)


def test_networks_without_gradients_are_told_so():
    class Steps(nn.Module):
        def forward(self, inputs):
            return torch.stack([inputs.mean((1, 2, 3)) > 0.5, inputs.mean((1, 2, 3)) <= 0.5], 1).float()

    class Rounded(nn.Module):
        def forward(self, inputs):
            return (inputs.flatten(1)[:, :3] * 4).round()

    images, labels = torch.rand(9, 1, 4, 4), torch.zeros(9, dtype=torch.long)
    for model in (Steps(), Rounded()):
        with pytest.raises(UsageError, match="--attack FGSM follows gradients.*SaltAndPepperNoiseAttack"):
            check_fits(["SaltAndPepperNoiseAttack", "FGSM"], model, images, labels)
        check_fits(["SaltAndPepperNoiseAttack", "L2RepeatedAdditiveGaussianNoiseAttack"], model, images, labels)
    model, labels = Rounded(), Rounded()(images).argmax(1)
    found, _ = perturbations(model, ATTACKS["SaltAndPepperNoiseAttack"], images, labels, epsilons=[], carlini_steps=1)
    assert found.isfinite().any()


def test_lack_of_memory_says_what_helps():
    for error in (torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(UsageError, match="this; try a smaller --batch_size"), memory_advice("this", "batch_size"):
            raise error
    with pytest.raises(RuntimeError, match="other"), memory_advice("this", "batch_size"):
        raise RuntimeError("other")


# -- as commands -----------------------------------------------------------------------------------------------------

ATTACK = ["--eval", "--test_scheme", "AdversarialEvaluation", *LATER]


def train(command, *argv):
    return command("--hidden", "16", "--epochs", "3", "--no-tensorboard", "--seed", "1", *argv).folder


def test_two_networks_in_one_report(command):
    """The one under test is masked, the other really smaller: both are attacked alike."""
    smaller = train(command, "--prune_criterion", "SNAP", "--pruning_limit", "0.5", "--run_name", "a")
    masked = train(command, "--pruning_limit", "0.5", "--run_name", "b")
    argv = [*ATTACK, "--attack", "FGSM", "--attack_samples", "50", "--epsilons", "0.2", "0", "--against", smaller]
    done = command(*argv, "--checkpoint_name", masked)
    report = json.loads((done.folder / "output" / "adversarial.json").read_text())
    assert list(report["networks"]) == ["this network", smaller.name]
    for run, one in zip((masked, smaller), report["networks"].values(), strict=True):
        trained = json.loads((run / "result.json").read_text())
        assert one["clean_accuracy"] == pytest.approx(trained["test_accuracy"])
        assert one["weight_sparsity"] == pytest.approx(trained["weight_sparsity"])
        found = one["attacks"]["FGSM"]
        assert one["attacked"] == 50 and found["epsilons"] == [0, 0.2] and found["norm"] == "Linf"
        assert found["success"][0] == 0 < found["success"][1]
    change = report["differences"]["FGSM"]
    robust = [one["attacks"]["FGSM"]["robust"][1] for one in report["networks"].values()]
    assert change["difference"][1] == pytest.approx(robust[0] - robust[1])
    assert change["difference_interval"][1][0] < change["difference"][1] < change["difference_interval"][1][1]
    pictures = {path.name for path in (done.folder / "output").glob("*.png")}
    assert pictures == {"adversarial_curves.png", "adversarial_FGSM.png", "adversarial_FGSM_against.png"}
    assert "FGSM, Linf 0.2" in done.out and smaller.name in done.out
    assert done.result["networks"] == report["networks"]
    assert done.result["test_accuracy"] == report["networks"]["this network"]["clean_accuracy"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--attack", "FSGM"], "Did you mean FGSM"),
        (["--against", "nothing"], "There is no run 'nothing'"),
        *later(
            (["--attack_samples", "0"], "attack_samples must be at least 1"),
            (["--carlini_steps", "0"], "carlini_steps must be at least 1"),
            (["--epsilons=-1"], "epsilons"),
        ),
    ],
)
def test_wrong_flags_are_one_line(command, argv, words):
    run = command.quick().folder
    assert words in command.refused(*ATTACK, "--checkpoint_name", run, *argv)


def test_tokens_cannot_be_attacked(command, tmp_path):
    data = """
        import torch


        class Tokens:
            input_shape, num_classes = (7,), 3

            def train(self):
                return torch.randint(0, 9, (60, 7), generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3

            test = train
        """
    model = """
        from torch import nn


        class Words(nn.Module):
            def __init__(self, num_classes, input_shape):
                super().__init__()
                self.words, self.last = nn.Embedding(9, 4), nn.Linear(4, num_classes)

            def forward(self, tokens):
                return self.last(self.words(tokens).mean(1))
        """
    write_plug_in(tmp_path / "mine", "data_sets", "Tokens", data)
    own = ["--plugin_dir", write_plug_in(tmp_path / "mine", "models", "Words", model)]
    argv = ["--data_set", "Tokens", "--model", "Words", "--prune_criterion", "EmptyCrit", "--pruning_limit", "0"]
    run = command(*own, *argv, "--epochs", "1", "--no-tensorboard").folder
    assert "real numbers" in command.refused(*ATTACK, "--checkpoint_name", run)


def test_nothing_to_attack(command):
    run = command.quick().folder
    tester = AdversarialEvaluation(**_parts(run, network(10, (1, 8, 8))))
    tester.test_batches = [(inputs, torch.full_like(targets, 9)) for inputs, targets in tester.test_batches]
    nn.init.constant_(tester.networks["this network"].model[-1].bias, -100.0)
    tester.networks["this network"].model[-1].bias.data[0] = 100.0

    class console:  # noqa: N801
        @staticmethod
        def track(items, what):
            return items

    with pytest.raises(UsageError, match="nothing to attack"):
        tester.evaluate(None, console)


def _parts(run, model):
    from data_sets._batches import make_batches
    from data_sets.DIGITS import DIGITS
    from pruning import PrunableNetwork

    batches = make_batches(DIGITS(), "test", batch_size=64, device="cpu", limit=1)
    return {"network": PrunableNetwork(model, torch.zeros(1, 1, 8, 8)), "test_batches": batches, "load_run": None}


def test_attack_alone_chooses_the_tester(command):
    """With its default, and with the network and the data of the run."""
    run = command.quick().folder
    argv = ["--eval", "--checkpoint_name", run, "--attack", "CarliniWagner", "--attack_samples", "2", *LATER]
    done = command(*argv, "--limit_batches", "1", "--carlini_steps", "3")
    assert list(done.result["networks"]["this network"]["attacks"]) == ["CarliniWagner"]
