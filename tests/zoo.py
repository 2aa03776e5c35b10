"""The zoo: models of torchvision, timm and Transformers with random weights, small, and an input for each.

One row a model; needs the extra `zoo`. Tests and benchmarks read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# One of each: convolutions with batch norm, a Transformer, a gate, experts.
QUICK = ("mobilenet_v3_small", "BertModel", "LlamaForCausalLM", "GptOssForCausalLM")


@dataclass(frozen=True)
class Animal:
    """A model, and what to call it with."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]  # keyword arguments
    quick: bool = False  # small enough for every run of the tests


def _vision() -> Any:
    try:
        torch.ops.torchvision.nms  # noqa: B018
    except AttributeError:
        # A torchvision built for another flavour of torch cannot load its own operators, and then does not even
        # import; no model here calls them, so declaring the two that it names at import is enough.
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _vision.library = library  # type: ignore[attr-defined]
    from torchvision import models

    return models


def _image(size: int, name: str = "x", batch: int = 2) -> Callable[[], dict[str, Any]]:
    return lambda: {name: torch.randn(batch, 3, size, size)}


def _tokens(vocabulary: int = 99, length: int = 12) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, vocabulary, (2, length))}


def _tv(name: str, size: int, **more: Any) -> Animal:
    def make() -> nn.Module:
        model: nn.Module = getattr(_vision(), name)(weights=None, **more)
        return model

    return Animal(f"torchvision {name}", make, _image(size), name in QUICK)


def _timm(name: str, size: int | None, **more: Any) -> Animal:
    def make() -> nn.Module:
        _vision()
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **more)
        return model

    return Animal(f"timm {name}", make, _image(size or 224), name in QUICK)


SMALL = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
LLAMA = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}


def _hf(model: str, config: str, inputs: Callable[[], dict[str, Any]] | None = None, **settings: Any) -> Animal:
    def make() -> nn.Module:
        _vision()
        import transformers

        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return made

    return Animal(f"transformers {model}", make, inputs or _tokens, model in QUICK)


ZOO: tuple[Animal, ...] = (
    _tv("alexnet", 96),
    _tv("vgg11_bn", 64),
    _tv("resnet18", 64),
    _tv("mobilenet_v2", 64),
    _tv("mobilenet_v3_small", 64),
    _tv("efficientnet_b0", 64),
    _tv("convnext_tiny", 64),
    _tv("vit_b_16", 64, image_size=64),
    _tv("swin_t", 64),
    _timm("mixer_s16_224", None),
    _timm("vit_tiny_patch16_224", 64, img_size=64),
    _timm("efficientnet_lite0", 64),
    _timm("resnetv2_50", 64),
    _timm("gmlp_s16_224", None),
    _timm("levit_128s", None),
    _timm("nfnet_l0", 64),
    _hf("BertModel", "BertConfig", **SMALL),
    _hf("GPT2LMHeadModel", "GPT2Config", vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64,
        bos_token_id=1, eos_token_id=2),
    _hf("T5ForConditionalGeneration", "T5Config",
        lambda: {**_tokens(), "decoder_input_ids": _tokens()["input_ids"]},
        vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0),
    _hf("LlamaForCausalLM", "LlamaConfig", **LLAMA),
    _hf("MistralForCausalLM", "MistralConfig", **LLAMA),
    _hf("GemmaForCausalLM", "GemmaConfig", **LLAMA, head_dim=8),
    _hf("Qwen2ForCausalLM", "Qwen2Config", **LLAMA),
    _hf("PhiForCausalLM", "PhiConfig", **SMALL, max_position_embeddings=64, pad_token_id=0),
    _hf("ViTModel", "ViTConfig", _image(32, "pixel_values"), **{**SMALL, "image_size": 32, "patch_size": 8}),
    _hf("WhisperModel", "WhisperConfig",
        lambda: {"input_features": torch.randn(2, 80, 60), "decoder_input_ids": _tokens()["input_ids"]},
        vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=30,
        max_target_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None),
    _hf("GptOssForCausalLM", "GptOssConfig", **LLAMA, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
)  # fmt: skip

# Nobody looked at these while the rewriting was written: other families, gates, experts and heads.
STRANGERS: tuple[Animal, ...] = (
    _tv("squeezenet1_1", 64),
    _tv("densenet121", 64),
    _tv("shufflenet_v2_x0_5", 64),
    _timm("mobilevit_xxs", 64),
    _timm("edgenext_xx_small", 64),
    _timm("fastvit_t8", 64),
    _timm("poolformer_s12", 64),
    _timm("cait_xxs24_224", None),
    _timm("xcit_nano_12_p16_224", None),
    _timm("eva02_tiny_patch14_224", None),
    _hf("RobertaForMaskedLM", "RobertaConfig", **SMALL),
    _hf("AlbertModel", "AlbertConfig", **SMALL, embedding_size=16),
    _hf("BloomForCausalLM", "BloomConfig", vocab_size=99, hidden_size=32, n_layer=2, n_head=4),
    _hf("FalconForCausalLM", "FalconConfig", vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    _hf("MixtralForCausalLM", "MixtralConfig", **LLAMA, num_local_experts=4),
    _hf("Phi3ForCausalLM", "Phi3Config", **LLAMA),
    _hf("ModernBertModel", "ModernBertConfig", **SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        cls_token_id=1, sep_token_id=2),
    _hf("DebertaV2Model", "DebertaV2Config", **SMALL),
)  # fmt: skip
