"""Networks of other libraries, tiny and with random weights, for the sweep beside this file.

Each library is one function that yields (name, builder); a builder returns the network and inputs for it. What a
library does not build from these settings is no network of the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import nn

Builder = Callable[[], tuple[nn.Module, Any]]
Named = Iterator[tuple[str, Builder]]

# -- transformers ------------------------------------------------------------------------------------------------------

# Under the names that configurations use; each sets those it has.
_SIZES = {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "dim": 64, "embed_dim": 64, "embedding_size": 64,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "d_kv": 16, "kv_channels": 16,
    "intermediate_size": 128, "d_ff": 128, "ffn_dim": 128, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "ffn_hidden_size": 128, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "vocab_size": 120, "max_position_embeddings": 64, "n_positions": 64, "max_source_positions": 32,
    "image_size": 32, "patch_size": 8, "num_mel_bins": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "num_labels": 5,
}  # fmt: skip

TOKENS = 12

_TRANSFORMERS_NAMED = """
albert apertus arcee aria_text audio-spectrogram-transformer aya_vision bamba bart bert bert-generation big_bird
bigbird_pegasus biogpt bit bitnet blenderbot blenderbot-small bloom camembert canine clvp codegen cohere cohere2
convbert convnext convnextv2 cpmant ctrl cvt data2vec-audio data2vec-text data2vec-vision dbrx deberta deberta-v2
deepseek_v2 deepseek_v3 deit dinov2 dinov2_with_registers dinov3_convnext dinov3_vit distilbert doge donut-swin
dots1 dpr dpt efficientnet electra encodec ernie ernie4_5 ernie4_5_moe esm exaone4 falcon falcon_h1 falcon_mamba
flaubert flex_olmo fnet focalnet fsmt funnel gemma gemma2 gemma3_text git glm glm4 glm4_moe glpn gpt-sw3 gpt2
gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoehybrid granitemoeshared
helium hgnet_v2 hiera hubert hunyuan_v1_dense hunyuan_v1_moe ibert ijepa jais2 jamba jetmoe layoutlm led levit lfm2
lilt llama llama4_text longformer longt5 luke m2m_100 mamba mamba2 marian markuplm mbart mega megatron-bert mimi
minimax ministral mistral mixtral mllama_text_model mobilebert mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2
modernbert modernbert-decoder moonshine mpnet mpt mra mt5 musicgen_decoder mvp nemotron nezha nllb-moe nystromformer
olmo olmo2 olmo3 olmoe openai-gpt opt patchtsmixer patchtst pegasus pegasus_x persimmon phi phi3 phimoe plbart
poolformer prophetnet pvt pvt_v2 qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next recurrent_gemma reformer regnet rembert
resnet roberta roberta-prelayernorm roc_bert roformer rwkv seed_oss segformer sew sew-d smollm3 speech_to_text
splinter squeezebert stablelm starcoder2 swiftformer swin swin2sr swinv2 switch_transformers t5 t5gemma textnet
timesformer timesfm trocr umt5 unispeech unispeech-sat videomae vilt visual_bert vit vit_mae vit_msn vitdet vivit
wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xlstm xmod yolos
yoso zamba zamba2
"""
TRANSFORMERS = _TRANSFORMERS_NAMED.split()

_CAUSAL_NAMED = "llama mistral qwen2 qwen3 gemma gemma2 phi phi3 gpt2 gpt_neox opt bloom falcon mixtral olmo2 stablelm"
CAUSAL = _CAUSAL_NAMED.split()


def of_transformers() -> Named:
    """Classes of transformers, with its default attention and cache; decoders also as people call them."""
    for kind in TRANSFORMERS:
        yield f"transformers/{kind}", lambda kind=kind: _transformer(kind)  # type: ignore[misc]
    for kind in CAUSAL:
        for attention in ("eager", "sdpa"):
            for cache in (True, False):
                name = f"transformers/{kind}, causal, {attention}, {'cache' if cache else 'no cache'}"
                yield name, lambda kind=kind, attention=attention, cache=cache: _causal(kind, attention, cache)  # type: ignore[misc]


def _configuration(kind: str, **more: Any) -> Any:
    config = import_module("transformers").AutoConfig.for_model(kind)
    parts = [config, *(getattr(config, name, None) for name in ("text_config", "vision_config", "encoder", "decoder"))]
    for part in parts:
        if part is None or isinstance(part, dict):
            continue
        for name, value in {**_SIZES, **more}.items():
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, value)
    return config


def _causal(kind: str, attention: str, cache: bool) -> tuple[nn.Module, Any]:
    config = _configuration(kind)
    config.use_cache = cache
    config._attn_implementation = attention
    model = import_module("transformers").AutoModelForCausalLM.from_config(config)
    return model, {"input_ids": torch.arange(1, 1 + 2 * TOKENS).view(2, TOKENS)}


def _transformer(kind: str) -> tuple[nn.Module, Any]:
    config = _configuration(kind)
    model = import_module("transformers").AutoModel.from_config(config)
    return model, _inputs_for(model, config)


def _inputs_for(model: nn.Module, config: Any) -> dict[str, Any]:
    ids = torch.arange(1, 1 + 2 * TOKENS).view(2, TOKENS)
    main = getattr(model, "main_input_name", "input_ids")
    if main == "input_ids":
        is_both = getattr(config, "is_encoder_decoder", False)
        return {"input_ids": ids, "decoder_input_ids": ids} if is_both else {"input_ids": ids}
    if main == "pixel_values":
        side = config.image_size if isinstance(getattr(config, "image_size", None), int) else 32
        channels = getattr(config, "num_channels", 3)
        frames = getattr(config, "num_frames", None)
        shape = (1, frames, channels, side, side) if frames else (1, channels, side, side)
        return {"pixel_values": torch.randn(shape)}
    if main == "input_features":
        bins = getattr(config, "num_mel_bins", getattr(config, "input_feat_per_channel", 80))
        if hasattr(config, "max_source_positions") and type(config).__name__ == "WhisperConfig":
            return {
                "input_features": torch.randn(1, bins, 2 * config.max_source_positions),
                "decoder_input_ids": ids[:1],
            }
        return {"input_features": torch.randn(1, 64, bins)}
    if main == "input_values":
        if hasattr(config, "num_mel_bins"):
            return {"input_values": torch.randn(1, config.max_length, config.num_mel_bins)}
        return {"input_values": torch.randn(1, 4000)}
    if main == "past_values":
        length = getattr(config, "context_length", 32)
        return {"past_values": torch.randn(2, length, getattr(config, "num_input_channels", 1))}
    raise ValueError(f"no inputs are known for {main}")


# -- diffusers ---------------------------------------------------------------------------------------------------------


def of_diffusers() -> Named:
    """Denoisers and autoencoders of diffusers."""

    def made(kind: str, inputs: Callable[[], Any], **settings: Any) -> Builder:
        return lambda: (getattr(import_module("diffusers"), kind)(**settings), inputs())

    blocks = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
    picture = {"sample_size": 16, "in_channels": 4, "out_channels": 4}
    text = {"hidden_states": (1, 4, 16, 16), "timestep": None, "encoder_hidden_states": (1, 6, 32)}

    def tensors(**shapes: Any) -> Callable[[], dict[str, Any]]:
        def give() -> dict[str, Any]:
            return {name: torch.tensor([3]) if shape is None else torch.randn(shape) for name, shape in shapes.items()}

        return give

    yield "diffusers/UNet2DModel", made(
        "UNet2DModel", tensors(sample=(1, 4, 16, 16), timestep=None), **picture, **blocks,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8)  # fmt: skip
    conditioned = {**picture, **blocks, "cross_attention_dim": 32, "attention_head_dim": 4,
                   "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                   "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
    sample_and_text = tensors(sample=(1, 4, 16, 16), timestep=None, encoder_hidden_states=(1, 6, 32))
    yield "diffusers/UNet2DConditionModel", made("UNet2DConditionModel", sample_and_text, **conditioned)
    yield "diffusers/ControlNetModel", made(
        "ControlNetModel",
        tensors(sample=(1, 4, 16, 16), timestep=None, encoder_hidden_states=(1, 6, 32),
                controlnet_cond=(1, 3, 128, 128)),
        in_channels=4, **blocks, cross_attention_dim=32, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(8, 16, 32, 64))  # fmt: skip
    yield "diffusers/UNet1DModel", made(
        "UNet1DModel", tensors(sample=(1, 2, 64), timestep=None), in_channels=2, out_channels=2, sample_size=64,
        block_out_channels=(16, 32), down_block_types=("DownBlock1DNoSkip", "DownBlock1D"), norm_num_groups=8,
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"), extra_in_channels=16)  # fmt: skip
    yield "diffusers/AutoencoderKL", made(
        "AutoencoderKL", tensors(sample=(1, 3, 16, 16)), **blocks, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    yield "diffusers/AutoencoderTiny", made(
        "AutoencoderTiny", tensors(sample=(1, 3, 16, 16)), encoder_block_out_channels=(32, 32),
        decoder_block_out_channels=(32, 32), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # fmt: skip
    yield "diffusers/VQModel", made(
        "VQModel", tensors(sample=(1, 3, 16, 16)), **blocks, latent_channels=3, num_vq_embeddings=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    yield "diffusers/DiTTransformer2DModel", made(
        "DiTTransformer2DModel",
        lambda: {"hidden_states": torch.randn(1, 4, 16, 16), "timestep": torch.tensor([3]),
                 "class_labels": torch.tensor([1])},
        num_attention_heads=4, attention_head_dim=16, in_channels=4, num_layers=2, sample_size=16,
        num_embeds_ada_norm=20)  # fmt: skip
    yield "diffusers/PixArtTransformer2DModel", made(
        "PixArtTransformer2DModel", tensors(**text), num_attention_heads=4, attention_head_dim=16, in_channels=4,
        out_channels=8, num_layers=2, cross_attention_dim=64, sample_size=16, caption_channels=32,
        use_additional_conditions=False)  # fmt: skip
    yield "diffusers/SD3Transformer2DModel", made(
        "SD3Transformer2DModel",
        tensors(hidden_states=(1, 4, 16, 16), encoder_hidden_states=(1, 6, 32), pooled_projections=(1, 24),
                timestep=None),
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=64, pooled_projection_dim=24, out_channels=4)  # fmt: skip
    yield "diffusers/FluxTransformer2DModel", made(
        "FluxTransformer2DModel",
        lambda: {"hidden_states": torch.randn(1, 16, 16), "encoder_hidden_states": torch.randn(1, 6, 32),
                 "pooled_projections": torch.randn(1, 24), "timestep": torch.tensor([0.5]),
                 "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(6, 3)},
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=32, pooled_projection_dim=24, axes_dims_rope=(4, 4, 8))  # fmt: skip
    yield "diffusers/SanaTransformer2DModel", made(
        "SanaTransformer2DModel", tensors(hidden_states=(1, 4, 8, 8), encoder_hidden_states=(1, 6, 32), timestep=None),
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=16, num_layers=2,
        num_cross_attention_heads=4, cross_attention_head_dim=16, cross_attention_dim=64, caption_channels=32,
        sample_size=8)  # fmt: skip
    yield "diffusers/PriorTransformer", made(
        "PriorTransformer",
        tensors(hidden_states=(1, 32), timestep=None, proj_embedding=(1, 32), encoder_hidden_states=(1, 6, 32)),
        num_attention_heads=4, attention_head_dim=16, num_layers=2, embedding_dim=32, num_embeddings=6,
        additional_embeddings=4)  # fmt: skip
    yield "diffusers/Transformer2DModel", made(
        "Transformer2DModel", lambda: {"hidden_states": torch.randn(1, 32, 8, 8)}, num_attention_heads=4,
        attention_head_dim=8, in_channels=32, num_layers=2, norm_num_groups=8, sample_size=8)  # fmt: skip


# -- pictures ----------------------------------------------------------------------------------------------------------


def of_ultralytics() -> Named:
    """YOLO 5, 8, 10, 11, 12: detection, and of 8 and 11 also segmentation, pose and classification."""

    def yolo(file: str) -> tuple[nn.Module, Any]:
        model = import_module("ultralytics").YOLO(file).model
        return model.float(), torch.randn(1, 3, 64, 64)

    names = ["yolov5n", "yolov8n", "yolov10n", "yolo11n", "yolo12n"]
    names += [f"{name}-{task}" for name in ("yolov8n", "yolo11n") for task in ("seg", "pose", "cls", "obb")]
    for name in names:
        yield f"ultralytics/{name}", lambda name=name: yolo(f"{name}.yaml")  # type: ignore[misc]


def of_segmentation_models() -> Named:
    """The architectures of segmentation-models-pytorch on a small encoder."""
    named = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer"

    def made(kind: str) -> tuple[nn.Module, Any]:
        library = import_module("segmentation_models_pytorch")
        model = getattr(library, kind)("resnet18", encoder_weights=None, classes=3)
        return model, torch.randn(2, 3, 64, 64)

    for kind in named.split():
        yield f"smp/{kind}", lambda kind=kind: made(kind)  # type: ignore[misc]


_TIMM_NAMED = """
beit_base_patch16_224 bat_resnext26ts botnet26t_256 cait_xxs24_224 coat_tiny coatnet_0_rw_224 convit_tiny
convmixer_768_32 convnext_atto convnextv2_atto crossvit_tiny_240 cs3darknet_s cspresnet50 davit_tiny
deit_tiny_patch16_224 deit3_small_patch16_224 densenet121 dla34 dm_nfnet_f0 dpn48b eca_nfnet_l0 edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224
fastvit_t8 fbnetc_100 focalnet_tiny_srf gcresnet33ts gcvit_xxtiny ghostnet_100 ghostnetv2_100 haloregnetz_b
hgnet_tiny hrnet_w18_small inception_resnet_v2 inception_v4 lambda_resnet26t lcnet_050 levit_128s maxvit_tiny_rw_224
mixer_s32_224 mixnet_s mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs mobilevitv2_050
mvitv2_tiny nest_tiny nf_resnet26 pit_ti_224 poolformer_s12 pvt_v2_b0 regnetx_002 regnety_002 repghostnet_050
repvgg_a0 repvit_m0_9 res2net50_26w_4s resmlp_12_224 resnest14d resnet18 resnetv2_50 resnext50_32x4d rexnet_100
selecsls42 semnasnet_050 sequencer2d_s seresnext26d_32x4d skresnet18 starnet_s1 swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 tinynet_e tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_pcpvt_small twins_svt_small
vgg11 visformer_tiny vit_tiny_patch16_224 vit_relpos_small_patch16_224 volo_d1_224 vovnet39a xception41
xcit_nano_12_p16_224
"""
TIMM = _TIMM_NAMED.split()


def of_timm() -> Named:
    """Families of timm, one of each."""

    def made(name: str) -> tuple[nn.Module, Any]:
        model = import_module("timm").create_model(name, pretrained=False, num_classes=10)
        return model, torch.randn(2, *model.default_cfg["input_size"])

    for name in TIMM:
        yield f"timm/{name}", lambda name=name: made(name)  # type: ignore[misc]


def of_torchvision() -> Named:
    """Detectors whole, as they are in evaluation, segmentation, video and optical flow."""
    models = import_module("torchvision.models")
    kinds = {"segmentation": models.segmentation, "video": models.video, "detection": models.detection}

    def made(name: str, kind: str) -> tuple[nn.Module, Any]:
        more = {} if kind == "video" else {"weights_backbone": None}
        model = models.get_model(name, weights=None, **more)
        if kind == "detection":
            return model, ([torch.rand(3, 96, 96)],)
        if kind == "video":
            side = 224 if name.startswith(("mvit", "swin", "s3d")) else 64
            return model, torch.randn(2, 3, 16, side, side)
        return model, torch.randn(2, 3, 64, 64)

    for kind, module in kinds.items():
        for name in models.list_models(module=module):
            yield f"torchvision/{name}", lambda name=name, kind=kind: made(name, kind)  # type: ignore[misc]


def of_geometric() -> Named:
    """Networks on graphs of PyTorch Geometric."""

    def made(kind: str) -> tuple[nn.Module, Any]:
        library = import_module("torch_geometric.nn")
        model = getattr(library, kind)(in_channels=16, hidden_channels=32, num_layers=3, out_channels=4)
        edges = torch.stack([torch.arange(20), (torch.arange(20) * 7 + 3) % 20])
        return model, (torch.randn(20, 16), edges)

    for kind in ("GCN", "GraphSAGE", "GAT", "GIN", "EdgeCNN"):
        yield f"torch_geometric/{kind}", lambda kind=kind: made(kind)  # type: ignore[misc]


LIBRARIES: dict[str, Callable[[], Named]] = {
    "transformers": of_transformers,
    "diffusers": of_diffusers,
    "ultralytics": of_ultralytics,
    "segmentation_models_pytorch": of_segmentation_models,
    "timm": of_timm,
    "torchvision": of_torchvision,
    "torch_geometric": of_geometric,
}
