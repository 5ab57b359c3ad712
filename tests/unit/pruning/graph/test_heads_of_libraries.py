"""Whole heads of networks that come from torchvision, timm and transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.graph.graph import DependencyGraph
from pruning.modules.calls import tensors_in
from tests.support.attention import head_groups, zeroed

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 6, "vocab_size": 20}
SHARED = {**SIZES, "num_key_value_heads": 2}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 6, "vocab_size": 20}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 6, "num_layers": 2, "num_heads": 4, "vocab_size": 20}
VIT = {**SIZES, "image_size": 8, "patch_size": 4}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2, "image_size": 16, "patch_size": 2}
WHISPER = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 6, "decoder_ffn_dim": 6, "vocab_size": 20, "num_mel_bins": 4,
    "max_source_positions": 6, "max_target_positions": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip

# kind of model -> (configuration, heads of each layer that can go)
OF_TRANSFORMERS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "bert": (SIZES, [4, 4]),
    "albert": ({**SIZES, "embedding_size": 8}, [4]),
    "deberta-v2": (SIZES, [4, 4]),
    "gpt2": (GPT2, [4, 4]),
    "llama": (SHARED, [2, 2]),
    "mistral": ({**SHARED, "head_dim": 4}, [2, 2]),
    "phi3": ({**SHARED, "pad_token_id": 0}, [2]),  # its layers read the number of heads in one configuration
    "t5": (T5, [4, 4, 4]),  # the layers of a side share one bias of positions
    "whisper": (WHISPER, [4, 4, 4]),
    "vit": (VIT, [4, 4]),
    "swin": (SWIN, [2, 4]),
    "xlnet": ({"d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 6, "vocab_size": 20}, [4, 4]),
}


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.double().eval()


def first_output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return tensors_in(model(**inputs))[0]


def check(model: nn.Module, inputs: dict[str, Tensor], heads: list[int]) -> None:
    """Removes every other head and compares with a copy in which these are zero."""
    graph = DependencyGraph(model, inputs, unit="head")
    layers = head_groups(graph)
    assert [len(nodes) for nodes in layers] == heads
    gone = [int(node) for nodes in layers for node in nodes[1::2]]
    expected = first_output(zeroed(model, graph, gone), inputs)
    before = first_output(model, inputs)
    plan = graph.plan(gone)
    assert plan.inexact == []
    plan.exec()
    torch.testing.assert_close(first_output(model, inputs), expected)
    assert not torch.allclose(before, expected, atol=1e-6)


def test_vit_of_torchvision() -> None:
    models = pytest.importorskip("torchvision").models
    model = randomised(models.VisionTransformer(8, 4, 2, 4, 16, 6, num_classes=3))
    check(model, {"x": torch.randn(2, 3, 8, 8, dtype=torch.float64)}, [4, 4])
    assert [block.self_attention.num_heads for block in model.encoder.layers] == [2, 2]


@pytest.mark.parametrize("version", ["", "V2"])
def test_swin_of_torchvision(version: str) -> None:
    swin = pytest.importorskip("torchvision").models.swin_transformer
    block = getattr(swin, f"SwinTransformerBlock{version}")
    merging = getattr(swin, f"PatchMerging{version}")
    made: Callable[..., nn.Module] = swin.SwinTransformer
    model = randomised(
        made([2, 2], 8, [1, 1], [2, 4], [2, 2], 2.0, stochastic_depth_prob=0.0, num_classes=3, block=block,
             downsample_layer=merging)
    )  # fmt: skip
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = DependencyGraph(model, inputs, unit="head")
    first, second = head_groups(graph)  # a head of each stage, with the channels that its width is taken from
    assert (len(first), len(second)) == (2, 4)
    plan = graph.plan([int(first[0]), int(second[1])])
    assert all("normalised" in reason for reason in plan.inexact)
    plan.exec()
    attentions = [module for module in model.modules() if isinstance(module, swin.ShiftedWindowAttention)]
    assert [attention.num_heads for attention in attentions] == [1, 3]
    model(inputs).sum().backward()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilevitv2_050"])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    inputs = {"x": torch.randn(2, 3, 32, 32, dtype=torch.float64)}
    if name.startswith("vit"):
        model = timm.create_model(name, img_size=32, embed_dim=16, depth=2, num_heads=4, num_classes=3)
        check(randomised(model), inputs, [4, 4])
    elif name.startswith("swin"):
        sizes = {"embed_dim": 8, "depths": (1, 2), "num_heads": (2, 4), "window_size": 2, "img_size": 32}
        check(randomised(timm.create_model(name, num_classes=3, **sizes)), inputs, [2, 4, 4])
    else:
        assert len(DependencyGraph(timm.create_model(name, num_classes=3), torch.randn(1, 3, 32, 32)).heads) == 0


@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
def test_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes, heads = OF_TRANSFORMERS[kind]
    model = randomised(transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **sizes)))
    words = torch.arange(10).reshape(2, 5)
    inputs = {"input_ids": words}
    if kind == "t5":
        inputs["decoder_input_ids"] = words[:, :3]
    elif kind == "whisper":
        inputs = {"input_features": torch.randn(2, 4, 12, dtype=torch.float64), "decoder_input_ids": words}
    elif kind in ("vit", "swin"):
        side = sizes["image_size"]
        inputs = {"pixel_values": torch.randn(2, 3, side, side, dtype=torch.float64)}
    check(model, inputs, heads)
