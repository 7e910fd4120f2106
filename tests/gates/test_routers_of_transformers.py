"""Routers of models in use, as Transformers computes them: `TopK` gives the same weights for the same parameters."""

import pytest
import torch

from moe_search.gates.top_k import TopK

pytestmark = pytest.mark.slow  # to import models takes seconds

FEATURES, EXPERTS, K = 6, 16, 4
GROUPS = {"n_group": 4, "topk_group": 2}
DEEPSEEK = {"scores": "sigmoid", "renormalize": True, "scale": 2.5, "choice_bias": True}
KEPT = {"num_groups": 4, "kept_groups": 2}

# The model and its router, options of its configuration, those of our gate.
ROUTERS = {
    "Mixtral": ("mixtral", "MixtralTopKRouter", {"num_local_experts": EXPERTS}, {}),
    "OLMoE": ("olmoe", "OlmoeTopKRouter", {"num_experts": EXPERTS}, {"renormalize": False}),
    "Qwen2": ("qwen2_moe", "Qwen2MoeTopKRouter", {"num_experts": EXPERTS}, {"renormalize": False}),
    "Qwen3": ("qwen3_moe", "Qwen3MoeTopKRouter", {"num_experts": EXPERTS, "norm_topk_prob": True}, {}),
    "gpt-oss": ("gpt_oss", "GptOssTopKRouter", {"num_local_experts": EXPERTS}, {}),
    "ERNIE": ("ernie4_5_moe", "Ernie4_5_MoeTopKRouter", {"moe_num_experts": EXPERTS}, {"choice_bias": True}),
    "DeepSeek-V2": (
        "deepseek_v2",
        "DeepseekV2TopkRouter",
        {"n_routed_experts": EXPERTS, "routed_scaling_factor": 16.0, "topk_method": "greedy"},
        {"renormalize": False, "scale": 16.0},
    ),
    "DeepSeek-V2 by groups": (
        "deepseek_v2",
        "DeepseekV2TopkRouter",
        {"n_routed_experts": EXPERTS, "routed_scaling_factor": 16.0, "topk_method": "group_limited_greedy", **GROUPS},
        {"renormalize": False, "scale": 16.0, **KEPT},
    ),
    "DeepSeek-V3": (
        "deepseek_v3",
        "DeepseekV3TopkRouter",
        {"n_routed_experts": EXPERTS, "n_group": 1, "topk_group": 1},
        DEEPSEEK,
    ),
    "DeepSeek-V3 by groups": (
        "deepseek_v3",
        "DeepseekV3TopkRouter",
        {"n_routed_experts": EXPERTS, **GROUPS},
        DEEPSEEK | KEPT,
    ),
    "GLM-4.5": (
        "glm4_moe",
        "Glm4MoeTopkRouter",
        {"n_routed_experts": EXPERTS, "routed_scaling_factor": 2.5, **GROUPS},
        DEEPSEEK | KEPT,
    ),
}


def published(folder, name, options):
    """A router with random parameters and, where it has one, a random bias of the choice."""
    transformers = pytest.importorskip("transformers")
    modeling = pytest.importorskip(f"transformers.models.{folder}.modeling_{folder}")
    known = {"hidden_size": FEATURES, "num_experts_per_tok": K, "moe_k": K, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model(folder, **known | options)
    torch.manual_seed(0)
    router = getattr(modeling, name)(config)
    for tensor in (*router.parameters(), *router.buffers()):
        torch.nn.init.normal_(tensor, std=0.5)
    return router


@pytest.mark.parametrize(("folder", "name", "options", "ours"), ROUTERS.values(), ids=ROUTERS)
def test_weights_are_those_of_transformers(folder, name, options, ours):
    router = published(folder, name, options)
    gate = TopK(FEATURES, EXPERTS, K, **ours)
    with torch.no_grad():
        gate.linear.weight.copy_(router.weight)
        gate.linear.bias.copy_(getattr(router, "bias", torch.zeros(())))
        biases = [tensor for path, tensor in router.state_dict().items() if path.endswith("correction_bias")]
        assert len(biases) == (gate.choice_bias is not None)
        for bias in biases:
            gate.choice_bias.copy_(bias.flatten())
        hidden = torch.randn(5, 40, FEATURES)
        _, weights, experts = router(hidden.flatten(0, 1))
        expected = torch.zeros(200, EXPERTS).scatter(1, experts, weights)
        torch.testing.assert_close(gate.expert_map(gate(hidden).weights), expected)
