"""Batches of map-style Datasets, read in this process or by workers."""

import gc
import multiprocessing
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from data_sets._batches import make_batches
from pruning.errors import UsageError
from tests.support.tiers import thorough


class Noisy(Dataset):
    """Sample i holds i and three random numbers, one of each global generator."""

    def __init__(self, count=41, broken=None):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.broken:
            raise UsageError(f"picture {index} is damaged")
        noise = [random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor([float(index), *noise]), index % 3


def batches(data, part="train", **options):
    data_set = SimpleNamespace(
        train=lambda: data, test=lambda: data, input_shape=(4,), num_classes=3, mean=options.pop("mean", None)
    )
    return make_batches(data_set, part, **{"batch_size": 8, "device": "cpu", **options})


def stacked(iterator):
    pairs = list(iterator)
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def test_batches_do_not_depend_on_the_number_of_workers():
    alone = stacked(batches(Noisy(), workers=0).epoch(2))
    for workers in (1, 2):
        loader = batches(Noisy(), workers=workers)
        for _ in range(2):  # the second time with the workers that are still there
            images, labels = stacked(loader.epoch(2))
            assert torch.equal(images, alone[0]) and torch.equal(labels, alone[1])
        loader.close()
    assert sorted(alone[0][:, 0].tolist()) == list(range(41)) and labels.tolist() == (images[:, 0] % 3).tolist()


def test_random_transforms_change_with_the_epoch_and_the_sample():
    loader = batches(Noisy())
    first, second = stacked(loader.epoch(0))[0], stacked(loader.epoch(1))[0]
    noise = torch.cat([first[:, 1:], second[:, 1:]]).flatten()
    assert len(noise.unique()) == len(noise)


def test_an_epoch_goes_on_anywhere_without_reading_what_came_before():
    data = Noisy()
    whole = list(batches(data, workers=0).epoch(1))
    read = []

    class Recording(Noisy):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    loader = batches(Recording(), workers=0)
    read.clear()
    rest = list(loader.epoch(1, start=3))
    assert all(torch.equal(x, u) for (x, _), (u, _) in zip(whole[3:], rest, strict=True))
    assert sorted(read) == sorted(int(i) for x, _ in whole[3:] for i in x[:, 0])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_abandoned_epoch_leaves_nothing_behind(workers):
    loader = batches(Noisy(), workers=workers)
    expected = stacked(loader.epoch(4))[0]
    for _ in range(3):
        next(loader.epoch(1))
    assert torch.equal(stacked(loader.epoch(4))[0], expected)
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iteration_within_an_iteration(workers):
    loader = batches(Noisy(), workers=workers)
    expected = stacked(loader.epoch(0))[0]
    seen = []
    for images, _ in loader.epoch(0):
        assert torch.equal(stacked(loader.epoch(0))[0], expected)
        seen.append(images)
    assert torch.equal(torch.cat(seen), expected)
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_stay_where_they_are(workers):
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    stacked(batches(Noisy(), workers=workers).epoch(0))
    assert (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_one_line_from_a_worker_too(workers):
    with pytest.raises(UsageError) as caught:
        stacked(batches(Noisy(broken=17), workers=workers))
    assert str(caught.value) == "picture 17 is damaged"


def test_the_last_single_sample_joins_and_the_limit_holds():
    sizes = [len(x) for x, _ in batches(Noisy(41)).epoch(0)]
    assert sizes == [8, 8, 8, 8, 9]
    assert [len(x) for x, _ in batches(Noisy(41), "test")] == [8, 8, 8, 8, 8, 1]
    assert batches(Noisy(41), limit=2).samples == 16


def test_tuning_splits_by_class_where_the_dataset_knows_them():
    data = Noisy(60)
    data.targets = [index % 3 for index in range(60)]
    held, rest = (stacked(batches(data, part, tuning=True))[0][:, 0].int() for part in ("test", "train"))
    assert sorted([*held.tolist(), *rest.tolist()]) == list(range(60))
    assert (held % 3).bincount().tolist() == [4, 4, 4]


def test_tuning_splits_by_chance_where_it_does_not():
    held, rest = (stacked(batches(Noisy(60), part, tuning=True))[0][:, 0].int() for part in ("test", "train"))
    assert sorted([*held.tolist(), *rest.tolist()]) == list(range(60)) and len(held) == 12


def test_what_the_data_set_declares_is_applied():
    plain, moved = stacked(batches(Noisy(), "test"))[0], stacked(batches(Noisy(), "test", mean=(1.0,)))[0]
    assert torch.equal(moved, plain - 1)


GOOD = (torch.zeros(4), 0)
WRONG = {
    "empty": ([], "empty"),
    "shape": ([(torch.zeros(5), 0)] * 3, r"sample 0 has shape \(5,\)"),
    "no tensor": ([("cat.jpg", 0)] * 3, "sample 0 holds str, expected a tensor"),
    "no pair": ([torch.zeros(4)] * 3, "sample 0 is Tensor"),
    "label": ([(torch.zeros(4), 3)] * 3, r"label 3 is outside 0\.\.2"),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_first_sample_is_refused_before_training(data, message):
    with pytest.raises(UsageError, match=message):
        batches(data)


@pytest.mark.parametrize("bad", [(torch.zeros(5), 0), (torch.zeros(4), 7)], ids=["shape", "label"])
def test_a_wrong_later_sample_is_refused_when_it_comes(bad):
    loader = batches([GOOD, GOOD, bad, GOOD], "test")
    with pytest.raises(UsageError, match=r"sample 2 has shape|label 7 is outside"):
        list(loader)


def test_a_list_of_two_samples_is_no_pair_of_tensors():
    assert [len(x) for x, _ in batches([GOOD, GOOD])] == [2]


def test_wrong_targets_are_refused_before_anything_is_read():
    data = Noisy()
    data.targets = [9] * 41
    with pytest.raises(UsageError, match="label 9"):
        batches(data)


@thorough
@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(3)"])
def test_workers_end_quietly_with_the_program(ending):
    program = f"""
import torch
from types import SimpleNamespace
from data_sets._batches import make_batches
data = [(torch.zeros(4), 0)] * 64
data_set = SimpleNamespace(train=lambda: data, test=lambda: data, input_shape=(4,), num_classes=3)
loader = make_batches(data_set, "train", batch_size=4, device="cpu", workers=2)
epoch = loader.epoch(0)
next(epoch)
{ending}
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == (3 if "3" in ending else 0)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_discarded_loader_in_a_reference_cycle_ends_its_workers():
    loader = batches(Noisy(), workers=2)
    loader.myself = loader
    stacked(loader.epoch(0))
    workers = multiprocessing.active_children()
    del loader
    gc.collect()
    # Each exits by itself; those whose queue died first are killed after seconds of waiting.
    assert len(workers) >= 2 and [worker.exitcode for worker in workers] == [0] * len(workers)


def test_mapping_data_without_a_length_is_refused():
    with pytest.raises(UsageError, match="expected .images, labels. or a Dataset with a length"):
        batches(iter([GOOD]))
