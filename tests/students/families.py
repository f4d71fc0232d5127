"""Small models of many families, and the shape they share; no test in itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OlmoeConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

VOCABULARY, LAYERS, EXPERTS, CHOSEN, COEFFICIENT = 120, 3, 4, 2, 0.02
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
MIXTURE: dict[str, Any] = {**SHAPE, "num_experts_per_tok": CHOSEN, "router_aux_loss_coef": COEFFICIENT}
GEMMA: dict[str, Any] = {
    **SHAPE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
MIXTURES: dict[str, PretrainedConfig] = {
    "mixtral": MixtralConfig(**MIXTURE, num_local_experts=EXPERTS),
    "qwen2-moe": Qwen2MoeConfig(
        **MIXTURE, num_experts=EXPERTS, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "qwen3-moe": Qwen3MoeConfig(**MIXTURE, num_experts=EXPERTS, moe_intermediate_size=16, head_dim=8),
    "olmoe": OlmoeConfig(**MIXTURE, num_experts=EXPERTS),
    "gpt-oss": GptOssConfig(
        **MIXTURE | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        num_local_experts=EXPERTS, head_dim=8, sliding_window=6,
    ),
    "granite-moe": GraniteMoeConfig(**MIXTURE, num_local_experts=EXPERTS, logits_scaling=4.0),
}  # fmt: skip
FAMILIES: dict[str, PretrainedConfig] = {
    **MIXTURES,
    "llama": LlamaConfig(**SHAPE),
    "gemma2": Gemma2Config(**GEMMA, final_logit_softcapping=0.5),
    "gemma3": Gemma3TextConfig(**GEMMA, final_logit_softcapping=0.5),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64),
    "gpt-neox": GPTNeoXConfig(**{k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}),
    "falcon": FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4),
    "opt": OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32,
    ),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=LAYERS, n_head=4),
    "mamba": MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=LAYERS, state_size=4),
    "deepseek-v3": DeepseekV3Config(
        **SHAPE | {"num_key_value_heads": 4}, moe_intermediate_size=16, n_routed_experts=EXPERTS, n_group=1,
        topk_group=1, num_experts_per_tok=CHOSEN, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4,
        qk_nope_head_dim=4, v_head_dim=8, first_k_dense_replace=1,
    ),
}  # fmt: skip


def made(config: PretrainedConfig, *, far: bool = True) -> PreTrainedModel:
    """A causal model in evaluation mode; `far` from the small values at the start, where a cap or a scale is no
    matter."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    if far:
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()
