"""Layers by name and shares by layer: on the command line, in files, in experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from utils.experiments.cell import command as words_of
from utils.settings import resolve

# MLP5 with 16 units: layers.0, .4, .8, .12 and .16 are its linear layers.
SIZES = {"0": 64 * 16, "4": 256, "8": 256, "12": 256, "16": 160}
WEIGHTS = ["--prune_criterion", "SNIP", "--pruning_limit", "0.5"]
NODES = ["--prune_criterion", "SNAPit", "--pruning_limit", "0.5"]


def saved(folder: Path) -> dict[str, Any]:
    (file,) = (folder / "models").glob("*_finished*")
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


def removed(folder: Path) -> dict[str, int]:
    """How many weights of each layer are masked."""
    masks = saved(folder)["masks"]
    found = {}
    for layer in SIZES:
        mask = masks.get(f"layers.{layer}.weight")
        found[layer] = 0 if mask is None else int((~mask).sum())
    return found


def widths(folder: Path) -> list[int]:
    state = saved(folder)["state_dict"]
    return [len(state[f"layers.{layer}.weight"]) for layer in SIZES]


def test_weights_of_named_layers_in_the_shares_that_were_typed(command: Any) -> None:
    shares = ["--shares", "layers.4=0.3", "layers.8*=.25", "--max_share", "0.8", "--skip", "layers.16"]
    done = command.quick(*WEIGHTS, *shares)
    gone = removed(done.folder)
    assert (gone["4"], gone["8"], gone["16"]) == (77, 64, 0)
    assert sum(gone.values()) == (1024 + 3 * 256) // 2
    assert max(gone["0"] / 1024, gone["12"] / 256) <= 0.8
    assert done.result["sparsity_reached"] == done.result["sparsity_asked"] == 0.5
    settings = yaml.safe_load((done.folder / "settings.yaml").read_text())
    assert settings["shares"] == {"layers.4": 0.3, "layers.8*": 0.25} and settings["skip"] == ["layers.16"]
    again = command("--resume", done.folder)
    assert again.code == 0, again.err


def test_nodes_of_named_layers_in_the_shares_of_a_file(command: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('only: ["layers.4", "layers.8"]\nshares: {"layers.4": 0.25}\n')
    done = command.quick(*NODES, "--config", file)
    assert widths(done.folder) == [16, 12, 4, 16, 10]
    assert (done.result["nodes_left"], done.result["nodes_total"]) == (16, 32)
    assert done.result["sparsity_reached"] == 0.5
    file.write_text("skip: layers.4\n")
    assert widths(command.quick(*NODES, "--config", file, "--run_name", "zz").folder)[1] == 16


def test_shares_of_every_layer_stand_in_the_place_of_the_limit(command: Any) -> None:
    done = command.quick(*WEIGHTS, "--shares", "*=0.25")
    assert removed(done.folder) == {layer: size // 4 for layer, size in SIZES.items()}
    assert done.result["sparsity_asked"] == done.result["sparsity_reached"] == 0.25
    assert "--shares name every layer" in done.out and "--pruning_limit 0.5 is not used" in done.out


def test_names_that_are_typed_again_come_on_top() -> None:
    typed = ["--only", "a", "--shares", "a=.1", "--only", "b", "c", "--shares", "b=.2"]
    settings = resolve.parse(typed)
    assert settings is not None
    assert list(settings.values["only"]) == ["a", "b", "c"] and settings.values["shares"] == {"a": 0.1, "b": 0.2}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--only", "layer.4"], "only: 'layer.4' names no layer of MLP5. Did you mean layers.4"),
        (["--shares", "owl"], "--shares takes NAME=NUMBER, once for each name; 'owl' was given."),
        (["--shares", "layers.4=much"], "'layers.4=much' was given"),
        (["--shares", "layers.4=1.5"], "0 to below 1; 1.5 was given"),
        (["--shares", "layers.4=.5", "--shares", "layers.4=.4"], "--shares takes NAME=NUMBER, once for each name"),
        (["--shares", "layers.4=.5", "--max_share", ".4"], "more than max_share"),
        (["--shares", "layers.4=.9", "layers.0=.9", "layers.8=.9"], "can be reached; 0.5 was asked for"),
        (["--only", "layers.1"], "there is nothing to prune"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(command: Any, argv: list[str], said: str) -> None:
    assert said in command.refused(*WEIGHTS, *argv)


def test_an_experiment_takes_and_compares_them(cells: Any) -> None:
    found = cells(
        """
        name: layers
        base: {hidden: 16, epochs: 1, limit_batches: 1, shares: {"layers.4": 0.3}, skip: [layers.16]}
        compare:
          prune_criterion: [{name: SNIP, only: ["layers.[048]"]}]
          pruning_limit: [0.5]
          max_share: [0.8, 0.9]
          seed: [1]
        """
    )
    pruned = [cell for cell in found.experiment.cells if cell.method]
    assert [cell.settings["max_share"] for cell in pruned] == [0.8, 0.9]
    for cell in pruned:
        settings = resolve.parse(words_of(cell.settings))
        assert settings is not None
        assert settings.values["shares"] == {"layers.4": 0.3} and list(settings.values["skip"]) == ["layers.16"]
        assert list(settings.values["only"]) == ["layers.[048]"]


def test_an_experiment_compares_shares(cells: Any) -> None:
    found = cells(
        """
        name: shares
        base: {hidden: 16, epochs: 1, limit_batches: 1}
        compare:
          prune_criterion: [SNIP]
          pruning_limit: [0.5]
          shares: [{"layers.4": 0.3}, "layers.8=0.2"]
          only: ["layers.[048]", ["layers.4", "layers.8"]]
          seed: [1]
        """
    )
    pruned = [cell for cell in found.experiment.cells if cell.method]
    assert len({json.dumps(dict(cell.settings), sort_keys=True, default=str) for cell in pruned}) == 4
    assert [cell.settings["shares"] for cell in pruned[::2]] == [{"layers.4": 0.3}, {"layers.8": 0.2}]
    assert "shares layers.4=0.3" in pruned[0].group
