"""A model divided over two cards, whose ranks meet by hccl."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.errors import ConfigError
from tgi_core.sampling_params import SamplingParams
from tgi_gaudi.runner import PaddedRunner

sys.path.insert(0, str(Path(__file__).parent))
from workload import LENGTHS, PROMPTS

SMALL = {"BATCH_BUCKET_SIZE": "2", "PREFILL_BATCH_BUCKET_SIZE": "2", "PAD_SEQUENCE_TO_MULTIPLE_OF": "16"}


@pytest.fixture
def divided(checkpoints, monkeypatch, tmp_path):
    """divided(name): an engine over two cards; what they compile is in the file `book`."""
    made = []

    def engine(name, **environment):
        cards = {"HABANA_STANDIN_CARDS": "2", "HABANA_STANDIN_BOOK": str(tmp_path / "book")}
        for variable, value in {**SMALL, **cards, **environment}.items():
            monkeypatch.setenv(variable, value)
        for variable in ("PT_HPU_ENABLE_LAZY_COLLECTIVES", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
            monkeypatch.setenv(variable, "")  # so that they are put back
            monkeypatch.delenv(variable)
        limits = {"dtype": "float32", "max_batch_size": 4, "max_input_tokens": 40, "max_total_tokens": 96}
        made.append(Engine(EngineConfig(model_id=str(checkpoints[0] / name), device="gaudi", num_shard=2, **limits)))
        return made[-1]

    yield engine
    for engine in made:
        engine.close()


@pytest.mark.parametrize("name", ["llama", "mixtral", "starcoder", "t5"])
def test_two_cards_say_what_one_says_in_shapes_that_each_compiled_once(checkpoints, divided, tmp_path, name):
    engine = divided(name)
    assert isinstance(engine.runner.own, PaddedRunner)
    assert engine.info.num_shard == 2
    compiled = Counter((tmp_path / "book").read_text().splitlines())
    assert set(compiled.values()) == {2}
    params = [SamplingParams(max_new_tokens=length, ignore_eos=True) for length in LENGTHS]
    found = [engine.generate([prompt], each)[0].token_ids for prompt, each in zip(PROMPTS, params, strict=True)]
    assert found == checkpoints[1][name]
    together = engine.generate(PROMPTS, SamplingParams(max_new_tokens=1, ignore_eos=True))
    assert [completion.token_ids for completion in together] == [tokens[:1] for tokens in found]
    assert Counter((tmp_path / "book").read_text().splitlines()) == compiled
    assert os.environ["LOCAL_RANK"] == "0"


def test_float8_of_a_divided_model_is_refused(divided, tmp_path):
    (tmp_path / "quant.json").write_text("{}")
    with pytest.raises(ConfigError, match="QUANT_CONFIG"):
        divided("llama", QUANT_CONFIG=str(tmp_path / "quant.json"))


def test_more_ranks_than_cards_are_refused(divided):
    with pytest.raises(ConfigError, match="only 1 gaudi devices can be used"):
        divided("llama", HABANA_STANDIN_CARDS="1")
