"""The families that core implements: one line each."""

from dataclasses import replace

from tgi_core.plugins.specs import ModelSpec

_MODELS = "tgi_core.models"

FAMILIES = (
    ModelSpec(architectures=("BloomForCausalLM",), target=f"{_MODELS}.bloom:BloomForCausalLM", family="BLOOM"),
    ModelSpec(
        architectures=("CohereForCausalLM",),
        target=f"{_MODELS}.cohere:CohereForCausalLM",
        family="Cohere",
        note="Command R",
    ),
    ModelSpec(
        architectures=("FalconForCausalLM", "RWForCausalLM"),
        target=f"{_MODELS}.falcon:FalconForCausalLM",
        family="Falcon 7B, Falcon 40B",
        note="also RW; its ALiBi is exact here, where transformers rounds it to bfloat16",
    ),
    ModelSpec(architectures=("GemmaForCausalLM",), target=f"{_MODELS}.gemma:GemmaForCausalLM", family="Gemma"),
    ModelSpec(architectures=("Gemma2ForCausalLM",), target=f"{_MODELS}.gemma2:Gemma2ForCausalLM", family="Gemma 2"),
    ModelSpec(
        architectures=("Gemma3ForCausalLM",),
        target=f"{_MODELS}.gemma2:Gemma2ForCausalLM",
        family="Gemma 3",
        note="text only",
    ),
    ModelSpec(
        architectures=("GPT2LMHeadModel", "GPT2LMHeadCustomModel"),
        target=f"{_MODELS}.gpt2:GPT2LMHeadModel",
        family="GPT-2",
        note="also SantaCoder as first published",
    ),
    ModelSpec(
        architectures=("GPTBigCodeForCausalLM",),
        target=f"{_MODELS}.gpt2:GPTBigCodeForCausalLM",
        family="SantaCoder, StarCoder",
    ),
    ModelSpec(architectures=("GPTJForCausalLM",), target=f"{_MODELS}.gptj:GPTJForCausalLM", family="GPT-J"),
    ModelSpec(
        architectures=("GPTNeoXForCausalLM",),
        target=f"{_MODELS}.gpt_neox:GPTNeoXForCausalLM",
        family="GPT-NeoX",
        note="also Pythia",
    ),
    ModelSpec(architectures=("GraniteForCausalLM",), target=f"{_MODELS}.granite:GraniteForCausalLM", family="Granite"),
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
    ModelSpec(architectures=("MixtralForCausalLM",), target=f"{_MODELS}.mixtral:MixtralForCausalLM", family="Mixtral"),
    ModelSpec(
        architectures=("MptForCausalLM", "MPTForCausalLM"),
        target=f"{_MODELS}.mpt:MptForCausalLM",
        family="MPT",
        note="`alibi_bias_max` counts here, where transformers takes 8 for it",
    ),
    ModelSpec(architectures=("Olmo2ForCausalLM",), target=f"{_MODELS}.olmo2:Olmo2ForCausalLM", family="OLMo 2"),
    ModelSpec(architectures=("OPTForCausalLM",), target=f"{_MODELS}.opt:OPTForCausalLM", family="OPT, Galactica"),
    ModelSpec(
        architectures=("PhiForCausalLM",),
        target=f"{_MODELS}.phi:PhiForCausalLM",
        family="Phi",
        note="1, 1.5 and 2",
    ),
    ModelSpec(
        architectures=("Phi3ForCausalLM",),
        target=f"{_MODELS}.phi3:Phi3ForCausalLM",
        family="Phi-3",
        note="also Phi-4; longrope by position: prompts beyond the trained context differ from transformers",
    ),
    ModelSpec(architectures=("Qwen2ForCausalLM",), target=f"{_MODELS}.llama:LlamaForCausalLM", family="Qwen2"),
    ModelSpec(
        architectures=("Qwen2MoeForCausalLM",), target=f"{_MODELS}.qwen_moe:Qwen2MoeForCausalLM", family="Qwen2-MoE"
    ),
    ModelSpec(architectures=("Qwen3ForCausalLM",), target=f"{_MODELS}.qwen3:Qwen3ForCausalLM", family="Qwen3"),
    ModelSpec(
        architectures=("Qwen3MoeForCausalLM",), target=f"{_MODELS}.qwen_moe:Qwen3MoeForCausalLM", family="Qwen3-MoE"
    ),
    ModelSpec(
        architectures=("StableLmForCausalLM",), target=f"{_MODELS}.stablelm:StableLmForCausalLM", family="StableLM"
    ),
    ModelSpec(
        architectures=("Starcoder2ForCausalLM",),
        target=f"{_MODELS}.starcoder2:Starcoder2ForCausalLM",
        family="StarCoder2",
    ),
    ModelSpec(
        architectures=("T5ForConditionalGeneration", "T5WithLMHeadModel"),
        target=f"{_MODELS}.t5:T5ForConditionalGeneration",
        family="T5, FLAN-T5",
        note="encoder-decoder; v1.0 and v1.1",
    ),
    ModelSpec(
        architectures=("MT5ForConditionalGeneration",),
        target=f"{_MODELS}.t5:MT5ForConditionalGeneration",
        family="mT5",
        note="encoder-decoder",
    ),
    ModelSpec(
        architectures=("UMT5ForConditionalGeneration",),
        target=f"{_MODELS}.t5:UMT5ForConditionalGeneration",
        family="UMT5",
        note="encoder-decoder",
    ),
)

#: compared and measured there, by benchmarks/families.py
ON_CPU = tuple(replace(family, device="cpu") for family in FAMILIES)
