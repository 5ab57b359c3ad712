"""Pruned networks as transformers' own loader takes them: found configurations, both ways to save, what is refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pruning
from pruning import DependencyGraph, UsageError
from pruning.pretrained.configuration import fitting_configs
from tests.support.tiers import later

LLAMA = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA |= {"intermediate_size": 24, "vocab_size": 50}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 50}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 50, "bos_token_id": None, "eos_token_id": None}
OPT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 24, "vocab_size": 50}
OPT |= {"word_embed_proj_dim": 16}


# -- a network that is built like one of transformers -----------------------------------------------------------------


class Config(SimpleNamespace):
    def to_dict(self):
        return dict(vars(self))

    def to_json_string(self, use_diff=True):
        return json.dumps(vars(self))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.head_size = heads, width // heads
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        inner = config.inner if config.inner is not None else 4 * config.width
        self.tokens = nn.Embedding(11, config.width)
        self.attention = Attention(config.width, config.heads)
        self.blocks = nn.ModuleList(nn.Linear(config.width, inner) for _ in range(config.layers))


def decoder(**settings):
    return Decoder(Config(**{"width": 8, "heads": 4, "inner": None, "layers": 2, "name": "x"} | settings))


@pytest.mark.parametrize("settings", [{"width": 6, "heads": 3}, {"inner": 20}, {"width": 4, "heads": 2, "inner": 16}])
def test_the_configuration_of_a_cut_network_is_found(settings):
    model = decoder(**settings)
    model.config = decoder().config  # a cut changes tensors and numbers, and no configuration
    configs, reason = fitting_configs(model)
    assert reason == ""
    inner = settings.get("inner", 4 * settings.get("width", 8))
    for config in configs:
        found = Decoder(config)
        assert found.tokens.embedding_dim == settings.get("width", 8) and found.blocks[1].out_features == inner
    assert any(config.heads == settings.get("heads", 4) for config in configs)
    assert vars(model.config) == vars(decoder().config)


def test_widths_that_differ_within_a_kind_are_named():
    model = decoder()
    model.blocks[1] = nn.Linear(8, 30)
    configs, reason = fitting_configs(model)
    assert configs == [] and "blocks.1" in reason and "30" in reason and "32" in reason


def test_another_network_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    with pytest.raises(UsageError, match="not for a Linear"):
        pruning.save_pretrained(nn.Linear(2, 2), tmp_path / "x")
    assert not list(tmp_path.iterdir())


# -- with transformers ------------------------------------------------------------------------------------------------


def made(kind, settings):
    """A small causal language model with weights that matter, and tokens."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CONFIG_MAPPING[kind](**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval(), torch.randint(0, 50, (2, 9))


def without_half(model, tokens, *, everywhere=True):
    """Cuts half of every group, or of all but the residual stream."""
    graph = DependencyGraph(model, tokens, unit="head")
    nodes = []
    for group in graph.groups:
        if everywhere or not any("embed" in name or "wte" in name for name, _ in group.layers):
            nodes += [int(node) for node in group.nodes[: len(group.nodes) // 2]]
    graph.plan(nodes).exec()
    return model


CASES = [("llama", LLAMA, True), ("llama", LLAMA, False), ("qwen3", {**LLAMA, "head_dim": 4}, False)]
CASES += [("mistral", LLAMA, False), ("gemma", {**LLAMA, "head_dim": 4}, False), ("gpt2", GPT2, True)]
CASES += [("opt", OPT, True), ("bert", {**BERT, "is_decoder": True}, True)]


@pytest.mark.parametrize(("kind", "settings", "everywhere"), [CASES[0], *later(*CASES[1:])])
def test_transformers_loads_by_itself_what_is_cut_alike(tmp_path, kind, settings, everywhere):
    model, tokens = made(kind, settings)
    without_half(model, tokens, everywhere=everywhere)
    config, wanted = model.config.to_dict(), model(tokens).logits
    saved = pruning.save_pretrained(model, tmp_path / "saved")
    assert saved.stock and str(tmp_path / "saved") in str(saved), saved.reason
    assert model.config.to_dict() == config
    import transformers

    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(stock(tokens).logits, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pruning.from_pretrained(tmp_path / "saved")(tokens).logits, wanted, rtol=1e-4, atol=1e-4)
    # Greedy tokens with a cache are those of the network called anew for each.
    longer = tokens
    for _ in range(5):
        longer = torch.cat([longer, model(longer).logits[:, -1:].argmax(2)], dim=1)
    generated = stock.generate(tokens, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(generated[:, : longer.shape[1]], longer)


def test_what_no_configuration_says_is_loaded_by_us(tmp_path):
    model, tokens = made("llama", LLAMA)
    graph = DependencyGraph(model, tokens)
    graph.plan(graph.nodes_along("model.layers.0.mlp.gate_proj.weight", 0)[:5]).exec()
    wanted = model(tokens).logits
    saved = pruning.save_pretrained(model, tmp_path / "saved", example_inputs=tokens)
    assert not saved.stock and "mlp" in saved.reason and "from_pretrained" in str(saved)
    loaded = pruning.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(tokens).logits, wanted)
    import transformers

    with pytest.raises(OSError):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")  # rather than with weights at random


def test_a_configuration_that_transformers_refuses_is_said(tmp_path):
    model, tokens = made("llama", LLAMA)
    graph = DependencyGraph(model, tokens, unit="head")
    graph.plan(graph.nodes_along("model.embed_tokens.weight", 1)[:5]).exec()  # eleven channels for four heads
    saved = pruning.save_pretrained(model, tmp_path / "saved")
    assert not saved.stock and "11" in saved.reason and "\n" not in saved.reason
    torch.testing.assert_close(pruning.from_pretrained(saved.path)(tokens).logits, model(tokens).logits)


def test_a_masked_network_is_saved_as_it_is_with_its_tokenizer(tmp_path):
    model, tokens = made("llama", LLAMA)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:, ::2] = 0
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "tokenizer.json").write_text("{}")
    (tmp_path / "dense" / "modeling.py").write_text("")
    saved = pruning.save_pretrained(model, tmp_path / "saved", copy_from=tmp_path / "dense")
    assert saved.stock
    names = {file.name for file in saved.path.iterdir()}
    assert {"tokenizer.json", "model.safetensors", "config.json"} <= names and "modeling.py" not in names
    loaded = pruning.from_pretrained(saved.path)
    assert torch.equal(loaded.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


def test_folders_that_cannot_be_are_refused(tmp_path):
    model, _ = made("llama", LLAMA)
    (tmp_path / "a file").touch()
    for place in (tmp_path, tmp_path / "a file"):
        with pytest.raises(UsageError, match="not empty"):
            pruning.save_pretrained(model, place)
    with pytest.raises(UsageError, match="no config.json"):
        pruning.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Own"], "auto_map": {"AutoModel": "x.Own"}}))
    with pytest.raises(UsageError, match="auto_map"):
        pruning.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Own"]}))
    with pytest.raises(UsageError, match="'Own'"):
        pruning.from_pretrained(tmp_path)
