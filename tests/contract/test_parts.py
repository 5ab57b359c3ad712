"""What data sets, losses, trainers and testers must do, those of tomorrow included."""

import urllib.error
import urllib.request

import pytest
import torch

from pruning import UsageError
from pruning.measure.measures import added_up, measured
from pruning.modules.calls import RUN_ERRORS
from tests.support.tiers import few
from utils.settings import registry
from utils.settings.parts import fixed_flags
from utils.settings.signatures import REQUIRED

PARTS = [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]
TESTERS = registry.names("testers")
TASKS = ("classification", "language", "regression", "segmentation")
LONG = {"AdversarialEvaluation"}  # a hundred steps for each picture


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_it_explains_itself_and_all_its_flags(kind, name):
    part = registry.find(kind, name)
    assert part.__name__ == name
    first_line = (part.__doc__ or "").strip().splitlines()[0]
    assert len(first_line) > 10, f"{name} needs a first line that says what it is"
    explained_elsewhere = {flag.name for flag in fixed_flags()}
    unexplained = {flag.name for flag in registry.flags(kind, name) if len(flag.help) < 5}
    assert unexplained <= explained_elsewhere


# Shapes of outputs, and targets that go with them: classes, numbers or labels, tokens. A network's own loss is another.
PAIRS = [((8, 4), torch.arange(8) % 4), ((8, 4), torch.ones(8, 4)), ((8, 6, 4), torch.arange(48).view(8, 6) % 4)]


@pytest.mark.parametrize("name", registry.names("losses"))
def test_a_loss_is_one_finite_number_with_a_gradient_or_says_what_it_takes(name):
    needed = [flag.name for flag in registry.flags("losses", name) if flag.default is REQUIRED]
    if needed:  # a teacher, say
        with pytest.raises(UsageError, match=needed[0]):
            registry.build("losses", name, {})
        return
    loss = registry.build("losses", name, {})
    taken = 0
    for shape, targets in PAIRS:
        outputs = torch.randn(shape, requires_grad=True)
        try:
            value = loss(outputs, targets)
        except UsageError as refused:
            assert str(shape) in str(refused) and str(tuple(targets.shape)) in str(refused)
            value = None
        except RUN_ERRORS:  # a user's loss may leave it to torch to say what does not fit
            value = None
        if value is None and hasattr(loss, "inputs_for"):
            value = loss({"loss": outputs.square().mean()}, targets)
        if value is None:
            continue
        taken += 1
        assert value.shape == () and torch.isfinite(value)
        value.backward()
        assert outputs.grad.abs().sum() > 0
        sums = measured(loss, outputs, targets)
        # What adds up over batches says the same of all of them at once, and no graph hangs on it.
        halves = added_up(measured(loss, outputs[:3], targets[:3]), measured(loss, outputs[3:], targets[3:]))
        for measure, total in sums.items():
            assert not total.requires_grad and torch.allclose(total, halves[measure])
    assert taken


def first_sample(part):
    """The first input and target of what train() or test() gives: two tensors, or a data set of pairs."""
    if isinstance(part, tuple):
        inputs, targets = part
        assert len(inputs) == len(targets) > 0
        return inputs[0], targets[0]
    return part[0]


@pytest.mark.parametrize("name", registry.names("data_sets"))
def test_a_data_set_gives_what_it_says_or_one_line_that_says_what_is_missing(name, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    try:
        data_set = registry.build("data_sets", name, {"data_dir": str(tmp_path / "data")})
        parts = [data_set.train(), data_set.test()]
    except UsageError as missing:
        assert str(tmp_path / "data") in str(missing) and "\n" not in str(missing)
        return
    for part in parts:
        inputs, target = first_sample(part)
        assert tuple(inputs.shape) == tuple(data_set.input_shape)
        check_target(data_set, torch.as_tensor(target))


def check_target(data_set, target):
    """A class, or one for every token or pixel, of which -100 is left out; for a regression a row of numbers."""
    task = getattr(data_set, "task", "classification")
    assert task in TASKS
    if task == "regression":
        assert target.shape == (data_set.num_classes,) and target.isfinite().all()
        return
    assert target.dtype == torch.int64 and (target.dim() > 0) == (task in ("language", "segmentation"))
    known = target[target != -100]
    assert known.min() >= 0 and known.max() < data_set.num_classes


@pytest.mark.parametrize("name", registry.names("trainers"))
def test_a_trainer_trains_or_says_in_one_line_what_it_needs(name, command):
    done = command.quick("--train_scheme", name)
    if done.code == 0:
        assert done.result["status"] == "finished"
        return
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 2 and len(errors) == 1 and name in errors[0]
    assert not done.runs, "what cannot be trained leaves nothing behind"


@pytest.mark.parametrize("name", few(TESTERS, set(TESTERS) - LONG))
def test_a_tester_evaluates_a_finished_run(name, command):
    trained = command.quick().folder
    done = command("--eval", "--checkpoint_name", trained, "--test_scheme", name, "--limit_batches", "1")
    assert done.code == 0, done.err
    (evaluated,) = [run for run in done.runs if run != trained]
    assert (evaluated / "result.json").is_file() and "Evaluation" in done.out
