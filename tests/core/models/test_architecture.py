"""What a model is where its config.json does not name a class."""

from pathlib import Path

import pytest

from tgi_core.errors import UnsupportedModel
from tgi_core.models.architecture import name_architecture
from tgi_core.weights.source import ModelFiles


def named(**config):
    files = ModelFiles("model", Path(), (), None, config, {})
    return name_architecture(files).config["architectures"]


def test_the_type_of_the_model_names_its_architecture():
    assert named(model_type="llama") == named(model_type="llama", architectures=[]) == ["LlamaForCausalLM"]
    assert named(model_type="t5", architectures=None) == ["T5ForConditionalGeneration"]


def test_a_name_of_its_own_is_kept():
    assert named(model_type="llama", architectures=["Other"]) == ["Other"]


@pytest.mark.parametrize("config", [{}, {"model_type": "strange"}])
def test_without_either_it_is_refused(config):
    with pytest.raises(UnsupportedModel, match="add the class name"):
        named(**config)
