"""Tiny random models of the families of mixtures that transformers has."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

EXPERTS = 8
VOCABULARY = 96
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
ATTENTION = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK = {
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 0,
    "n_shared_experts": 1,
}
QWEN = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL = {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}

# A new family is one line.
FAMILIES = {
    "mixtral": LOCAL,
    "olmoe": {"num_experts": EXPERTS, "num_experts_per_tok": 2},
    "qwen2_moe": {**QWEN, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**QWEN, "head_dim": 8, "norm_topk_prob": True},
    "deepseek_v2": {**DEEPSEEK, **ATTENTION, "n_group": 1, "topk_group": 1},
    "deepseek_v3": {**DEEPSEEK, **ATTENTION, "n_group": 1, "topk_group": 1},
    "gpt_oss": {**LOCAL, "head_dim": 8},
    "glm4_moe": {**DEEPSEEK, "head_dim": 8, "n_group": 1, "topk_group": 1},
    "phimoe": LOCAL,
    "granitemoe": LOCAL,
    "ernie4_5_moe": {
        "moe_num_experts": EXPERTS,
        "moe_k": 2,
        "moe_intermediate_size": 24,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": 1,
        "moe_num_shared_experts": 1,
    },
}
GROUPS = {
    "deepseek_v2": {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {"n_group": 2, "topk_group": 1},
}


def tiny_model(family, seed=0, **changes):
    """A causal language model with random weights, all of a size that matters, biases of routers too."""
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family] | changes)
    config._experts_implementation = "eager"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "correction_bias" in name or name.endswith(("router.bias", "proj_bias")):
                tensor.normal_(0, 0.1)
            elif tensor.ndim > 1:
                tensor.normal_(0, 0.15)
    return model


def tokens(seed=0, sequences=3, length=12):
    """Token ids, none of which is padding."""
    return torch.randint(2, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(seed))


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits
