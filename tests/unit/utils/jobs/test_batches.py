"""Data of several inputs, networks that return more than scores, losses of the network's own: from the command line."""

import pytest

from tests.support.running import write_plug_in
from tests.support.tiers import few

MODEL = """
    from dataclasses import dataclass

    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    @dataclass
    class Said:
        logits: Tensor
        loss: Tensor = None

    class Reader(nn.Module):
        '''Called with keywords, as transformers are, and answering in a data class.'''

        def __init__(self, num_classes: int):
            super().__init__()
            self.words = nn.Embedding(9, 8)
            self.inner, self.last = nn.Linear(8, 12), nn.Linear(12, num_classes)

        def forward(self, input_ids, attention_mask=None, labels=None):
            x = self.words(input_ids)
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            mask = attention_mask[..., None]
            x = (x * mask).sum(1) / mask.sum(1).clamp_min(1)
            scores = self.last(self.inner(x).relu())
            loss = None if labels is None else F.cross_entropy(scores, labels)
            return Said(scores, loss)
"""
DATA = """
    import torch
    from torch.utils.data import Dataset

    class Pairs(Dataset):
        def __init__(self, inputs, labels):
            self.inputs, self.labels = inputs, labels

        def __len__(self):
            return len(self.labels)

        def __getitem__(self, index):
            sample = {{name: values[index] for name, values in self.inputs.items()}}
            label = self.labels[index]
            return {sample}

    class {name}:
        '''Which word comes most often among those that count.'''
        input_shape, num_classes = (5,), 3

        def make(self, count, seed):
            draws = torch.Generator().manual_seed(seed)
            words = torch.randint(0, 9, (count, 5), generator=draws)
            mask = (torch.rand(count, 5, generator=draws) > 0.3).long()
            inputs, labels = {{"input_ids": words, "attention_mask": mask}}, (words * mask).sum(1) % 3
            return {whole}

        def train(self):
            return self.make(64, 0)

        def test(self):
            return self.make(20, 1)
"""
# name -> a sample, and what train() returns
FORMS = {
    "Tables": ("None", "inputs, labels"),
    "OneDict": ("None", "inputs | {'labels': labels}"),
    "PairsOfDicts": ("sample, label", "Pairs(inputs, labels)"),
    "DictsWithLabels": ("sample | {'labels': label}", "Pairs(inputs, labels)"),
    "Lists": ("{n: v.tolist() for n, v in sample.items()} | {'labels': int(label)}", "Pairs(inputs, labels)"),
    "NoLabels": ("sample", "Pairs(inputs, labels)"),
    "Ragged": ("{n: v[: 4 + index % 2] for n, v in sample.items()}, label", "Pairs(inputs, labels)"),
}
SHORT = ["--model", "Reader", "--epochs", "1", "--batch_size", "16", "--no-tensorboard", "--pruning_limit", "0.5"]
WHOLE = ["Tables", "OneDict", "PairsOfDicts", "DictsWithLabels", "Lists"]


@pytest.fixture(scope="module")
def plug_ins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plug_ins")
    write_plug_in(folder, "models", "Reader", MODEL)
    for name, (sample, whole) in FORMS.items():
        write_plug_in(folder, "data_sets", name, DATA.format(name=name, sample=sample, whole=whole))
    return folder


def start(plug_ins, name):
    return ["--plugin_dir", plug_ins, "--data_set", name, *SHORT]


@pytest.fixture(scope="module")
def first():
    return {}


@pytest.mark.parametrize("name", few(WHOLE, {"OneDict", "DictsWithLabels"}))
def test_several_inputs_are_trained_scored_counted_and_tested_whatever_form_they_come_in(
    command, plug_ins, first, name
):
    done = command(*start(plug_ins, name), "--prune_criterion", "SNAP")
    found = {key: done.result[key] for key in ("test_loss", "test_accuracy", "train_loss", "flops_per_sample")}
    assert found == pytest.approx(first.setdefault("found", found))
    evaluated = command("--eval", "--checkpoint_name", done.folder)
    assert evaluated.result["test_loss"] == pytest.approx(done.result["test_loss"])


def test_a_network_of_several_inputs_is_exported_and_timed(command, plug_ins):
    flags = ["--prune_criterion", "SNIP", "--export", "torch_export", "--measure_latency"]
    done = command(*start(plug_ins, "Tables"), *flags)
    assert (done.folder / "models" / "Reader.pt2").is_file() and done.result["latency_seconds"] > 0
    timed = command("--eval", "--checkpoint_name", done.folder, "--test_scheme", "Latency", "--latency_batches", "1")
    assert timed.code == 0


@pytest.mark.parametrize(
    ("name", "words"), [("NoLabels", ["sample 0", "input_ids", "labels"]), ("Ragged", ["(4,)", "(5,)"])]
)
def test_samples_that_are_none_are_said_in_one_line(command, plug_ins, name, words):
    line = command.refused(*start(plug_ins, name))
    assert all(word in line for word in words), line


def test_the_networks_own_loss_is_what_it_says_it_is(command, plug_ins):
    flags = [*start(plug_ins, "Tables"), "--prune_criterion", "SNIP"]
    own, usual = command(*flags, "--loss", "FromModel").result, command(*flags).result
    for field in ("test_loss", "train_loss", "test_accuracy", "weight_sparsity"):
        assert own[field] == pytest.approx(usual[field])
    line = command.refused("--loss", "FromModel", "--hidden", "16")
    assert "FromModel" in line and "labels" in line and "MLP5" in line


def test_testers_of_pictures_refuse_several_inputs(command, plug_ins):
    done = command(*start(plug_ins, "Tables"), "--prune_criterion", "SNIP")
    line = command.refused("--eval", "--checkpoint_name", done.folder, "--test_scheme", "Corruption")
    assert "Corruption" in line and "dict" in line
