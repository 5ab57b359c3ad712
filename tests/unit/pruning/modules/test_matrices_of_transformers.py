"""Networks of transformers, where it is installed; the zoo of matrices has the same patterns in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from criterions.Magnitude import Magnitude
from criterions.Wanda import Wanda
from pruning import PrunableNetwork

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "intermediate_size": 24,
}
TOKENS = {"input_ids": torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])}


def decoder(kind: str, experts: str = "eager", **more: Any) -> nn.Module:
    config = transformers.AutoConfig.for_model(kind, num_key_value_heads=2, **SMALL, **more)
    config._experts_implementation = experts
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=16)
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


NETWORKS = {
    "gpt2": gpt2,
    "llama": lambda: decoder("llama"),
    "mixtral": lambda: decoder("mixtral", num_local_experts=4),
    "mixtral by group": lambda: decoder("mixtral", "grouped_mm", num_local_experts=4),
    "mixtral by token": lambda: decoder("mixtral", "batched_mm", num_local_experts=4),
    "gpt_oss": lambda: decoder("gpt_oss", num_local_experts=4, head_dim=8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_masks_reach_all_but_tables_and_biases(name: str) -> None:
    model = NETWORKS[name]().eval()
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    matrices = {}
    for parameter_name, parameter in model.named_parameters():
        is_table = id(parameter) in tables and id(parameter) not in tied
        if parameter.dim() > 1 and not is_table and "bias" not in parameter_name:
            matrices[parameter_name] = parameter
    network = PrunableNetwork(model, TOKENS)
    assert set(network.prunable()) == set(matrices)
    report = network.prune(Magnitude(), sparsity=0.9)
    total = sum(matrix.numel() for matrix in matrices.values())
    assert sum(int((matrix == 0).sum()) for matrix in matrices.values()) == round(0.9 * total)
    assert "looked up" in str(report)


@pytest.mark.parametrize("name", NETWORKS)
def test_wanda_scores_all_of_them(name: str) -> None:
    network = PrunableNetwork(NETWORKS[name]().eval(), TOKENS)
    network.prune(Wanda(), [(TOKENS, torch.zeros(1))], sparsity=0.5)
    assert not network.unscored and all(bool(scores.any()) for scores in network.last_scores.values())


def test_experts_score_alike_however_they_are_multiplied() -> None:
    scores = []
    for name in ("mixtral", "mixtral by group", "mixtral by token"):
        torch.manual_seed(0)
        network = PrunableNetwork(NETWORKS[name]().eval(), TOKENS)
        scores.append(Wanda().weight_scores(network, [(TOKENS, torch.zeros(1))]))
    for other in scores[1:]:
        assert all(torch.allclose(scores[0][matrix], other[matrix], atol=1e-4) for matrix in scores[0])
