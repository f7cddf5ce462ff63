"""The families that core implements: one line each."""

from tgi_core.plugins.specs import ModelSpec

_MODELS = "tgi_core.models"

FAMILIES = (
    ModelSpec(
        architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
        target=f"{_MODELS}.llama:LlamaForCausalLM",
        family="Llama, Llama 2, Code Llama",
        note="also Llama 3, SmolLM2",
    ),
    ModelSpec(
        architectures=("MistralForCausalLM",),
        target=f"{_MODELS}.llama:LlamaForCausalLM",
        family="Mistral",
        note="v0.1 with its sliding window, v0.2 and later without",
    ),
    ModelSpec(architectures=("Qwen2ForCausalLM",), target=f"{_MODELS}.llama:LlamaForCausalLM", family="Qwen2"),
    ModelSpec(architectures=("Qwen3ForCausalLM",), target=f"{_MODELS}.qwen3:Qwen3ForCausalLM", family="Qwen3"),
    ModelSpec(
        architectures=("GPTNeoXForCausalLM",),
        target=f"{_MODELS}.gpt_neox:GPTNeoXForCausalLM",
        family="GPT-NeoX",
        note="also Pythia",
    ),
)
