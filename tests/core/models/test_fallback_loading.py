"""Which models transformers may load here, with which class, and whose code runs."""

import json
import sys
import textwrap

import pytest
import torch

from tgi_core.config import EngineConfig
from tgi_core.distributed.group import Alone
from tgi_core.engine.build import build
from tgi_core.engine.engine import Engine
from tgi_core.engine.place import find_place
from tgi_core.errors import ConfigError, TokenizerError, UnsupportedModel
from tgi_core.layers.build import BuildContext
from tgi_core.models.fallback_config import parse_fallback_config
from tgi_core.models.fallback_loading import load_fallback
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint, write_tokenizer

OWN_CONFIG = """
    from pathlib import Path
    from transformers import PreTrainedConfig

    Path({marker!r}).write_text("configuration")


    class TinyRnnConfig(PreTrainedConfig):
        model_type = "tiny_rnn"

        def __init__(self, vocab_size=384, hidden_size=32, num_hidden_layers=2, **options):
            self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
            super().__init__(**options)
"""
OWN_MODEL = """
    from pathlib import Path

    import torch
    from transformers import GenerationMixin, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast

    from .configuration_tiny_rnn import TinyRnnConfig

    Path({marker!r}).write_text("model")


    class TinyRnnForCausalLM(PreTrainedModel, GenerationMixin):
        config_class = TinyRnnConfig

        def __init__(self, config):
            super().__init__(config)
            self.embed = torch.nn.Embedding(config.vocab_size, config.hidden_size)
            self.rnn = torch.nn.GRU(
                config.hidden_size, config.hidden_size, config.num_hidden_layers, batch_first=True
            )
            self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size)
            self.post_init()

        def forward(self, input_ids, past_key_values=None, **options):
            state = None if past_key_values is None else past_key_values[0]
            hidden, state = self.rnn(self.embed(input_ids), state)
            return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=(state,))
"""
OWN_TOKENIZER = """
    from pathlib import Path
    from transformers import PreTrainedTokenizer

    Path({marker!r}).write_text("tokenizer")


    class OwnTokenizer(PreTrainedTokenizer):
        vocab_size = 256

        def get_vocab(self):
            return {{chr(i): i for i in range(256)}}

        def _tokenize(self, text):
            return list(text)

        def _convert_token_to_id(self, token):
            return ord(token)

        def _convert_id_to_token(self, index):
            return chr(index)

        def convert_tokens_to_string(self, tokens):
            return "".join(tokens)
"""
PROMPTS = [[(3 * i + j * j) % VOCABULARY for j in range(length)] for i, length in enumerate((4, 9, 9, 30))]


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """transformers copies models' code into a folder of the test's, and knows none of other tests."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def own_code(tmp_path, marker, own_modules):
    """A model with code of its own, and no other way to run it."""
    folder = tmp_path / "own-code"
    write_tokenizer(folder)
    for name, code in (("configuration_tiny_rnn", OWN_CONFIG), ("modeling_tiny_rnn", OWN_MODEL)):
        (folder / f"{name}.py").write_text(textwrap.dedent(code).format(marker=str(marker)))
    config = {
        "architectures": ["TinyRnnForCausalLM"],
        "model_type": "tiny_rnn",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "eos_token_id": 2,
        "auto_map": {
            "AutoConfig": "configuration_tiny_rnn.TinyRnnConfig",
            "AutoModelForCausalLM": "modeling_tiny_rnn.TinyRnnForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    parts = {
        "embed": torch.nn.Embedding(VOCABULARY, 32),
        "rnn": torch.nn.GRU(32, 32, 2),
        "lm_head": torch.nn.Linear(32, VOCABULARY),
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.{key}": torch.randn(value.shape, generator=generator)
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_engine(folder, **settings):
    return Engine(EngineConfig(model_id=str(folder), device="cpu", **settings))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_of_a_model_is_not_imported_unless_it_is_trusted(own_code, marker):
    with pytest.raises(UnsupportedModel, match=r"modeling_tiny_rnn.py.*--trust-remote-code"):
        make_engine(own_code)
    assert not marker.exists()


@torch.inference_mode()
def test_trusted_code_of_a_model_runs(own_code, marker):
    from transformers import AutoModelForCausalLM

    engine = make_engine(own_code, trust_remote_code=True)
    assert marker.read_text() == "model"
    found = engine.generate(PROMPTS, SamplingParams(max_new_tokens=16, ignore_eos=True))
    model = AutoModelForCausalLM.from_pretrained(own_code, trust_remote_code=True).eval()
    for prompt, completion in zip(PROMPTS, found, strict=True):
        tokens = list(prompt)
        for _ in range(16):
            tokens.append(model(torch.tensor([tokens])).logits[0, -1].argmax().item())
        assert completion.token_ids == tokens[len(prompt) :]


def test_a_model_that_fails_on_a_few_tokens_is_refused(own_code):
    code = own_code / "modeling_tiny_rnn.py"
    code.write_text(
        code.read_text().replace("state = None", "raise ValueError('needs a whole chunk')\n        state = None")
    )
    with pytest.raises(UnsupportedModel, match="does not run on a few tokens: needs a whole chunk"):
        make_engine(own_code, trust_remote_code=True)


def test_code_beside_a_model_that_transformers_knows_is_not_needed(tmp_path, marker):
    folder = make_checkpoint(tmp_path / "mamba", "mamba")
    (folder / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    make_engine(folder).generate([[5, 6]])
    assert not marker.exists()


def test_code_of_a_tokenizer_is_not_imported_unless_it_is_trusted(tmp_path, marker, own_modules):
    folder = make_checkpoint(tmp_path / "mamba", "mamba")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenization_own.py").write_text(textwrap.dedent(OWN_TOKENIZER).format(marker=str(marker)))
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    with pytest.raises(TokenizerError, match="--trust-remote-code"):
        make_engine(folder).tokenizer  # noqa: B018
    assert not marker.exists()
    assert make_engine(folder, trust_remote_code=True).tokenizer.encode("Hi")[-2:] == [72, 105]
    assert marker.exists()


def test_weights_in_bin_files(tmp_path):
    from safetensors.torch import load_file

    folder = make_checkpoint(tmp_path / "mamba", "mamba")
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    expected = make_engine(folder).generate(PROMPTS, params)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert make_engine(folder).generate(PROMPTS, params) == expected


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_quantised_weights_are_refused(tmp_path, method):
    folder = make_checkpoint(tmp_path, "mamba")
    edit_config(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(UnsupportedModel, match=method):
        make_engine(folder)
    raw = json.loads((folder / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match=f"{method} quantization is not supported"):
        parse_fallback_config(raw, folder, trust_remote_code=False)


def test_quantising_while_loading_is_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match="int8 quantization is not supported"):
        make_engine(make_checkpoint(tmp_path, "mamba"), quantize="int8")


def test_a_model_that_generates_nothing_is_refused(tmp_path):
    from transformers import AutoConfig, AutoModelForMaskedLM

    config = AutoConfig.for_model("distilbert", vocab_size=VOCABULARY, dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(UnsupportedModel, match="neither a causal nor a sequence-to-sequence"):
        make_engine(tmp_path)


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path, "mamba")
    tensors = load_file(folder / "model.safetensors")
    del tensors["backbone.layers.1.mixer.in_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"lacks 1 tensors of Mamba.*layers.1.mixer.in_proj.weight"):
        make_engine(folder)


def test_a_model_without_a_cache_is_refused(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("openai-gpt", vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(UnsupportedModel, match="keeps no cache"):
        make_engine(tmp_path)


def test_rope_wishes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--rope-scaling"):
        make_engine(make_checkpoint(tmp_path, "gpt_neo"), rope_factor=2.0)


def test_a_model_without_a_longest_sequence_takes_the_one_that_is_wished_for(tmp_path):
    folder = make_checkpoint(tmp_path, "mamba")
    assert make_engine(folder).info.max_total_tokens == 4096
    assert make_engine(folder, max_total_tokens=10000).info.max_total_tokens == 10000


def test_so_many_sequences_as_have_room_for_their_state(tmp_path):
    folder = make_checkpoint(tmp_path, "mamba")
    few = make_engine(folder, memory_fraction=1e-5).info.max_batch_size
    assert 0 < few < make_engine(folder).info.max_batch_size
    with pytest.raises(ConfigError, match="memory for"):
        make_engine(folder, memory_fraction=1e-7)


def build_context(folder, **options):
    return BuildContext(
        kernels=None, linear=None, attention=None, dtype=torch.float32, folder=folder, devices=2, **options
    )


def test_several_devices_are_left_to_accelerate(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    folder = make_checkpoint(tmp_path, "mamba")
    config = parse_fallback_config(json.loads((folder / "config.json").read_text()), folder, trust_remote_code=False)
    given, load = {}, AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **options: given.update(options) or load(*args, **options),
    )
    assert load_fallback(config, build_context(folder)).batching == "padded"
    assert given["device_map"] == "auto"


def test_several_devices_without_accelerate_are_an_error(tmp_path, monkeypatch):
    folder = make_checkpoint(tmp_path, "mamba")
    config = parse_fallback_config(json.loads((folder / "config.json").read_text()), folder, trust_remote_code=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match="pip install accelerate"):
        load_fallback(config, build_context(folder))


class Two(Alone):
    size = 2


def test_ranks_are_refused(tmp_path):
    folder = make_checkpoint(tmp_path, "mamba")
    config = EngineConfig(model_id=str(folder), device="cpu")
    with pytest.raises(ConfigError, match="--num-shard 2 is not supported"):
        build(config, find_place(config), group=Two())
