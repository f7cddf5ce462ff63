"""One copy of a weight that is embedding and head."""

from types import SimpleNamespace

import torch
from torch import nn

from tgi_core.config import EngineConfig
from tgi_core.engine.engine import Engine
from tgi_core.kernels.reference import linear as reference
from tgi_core.kernels.reference import look_up as tables
from tgi_core.layers.embedding import Embedding
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import make_checkpoint

PARAMS = SamplingParams(max_new_tokens=8, ignore_eos=True)


def embedding_of(engine):
    return next(module for module in engine.runner.model.modules() if isinstance(module, Embedding))


def test_a_tied_embedding_is_read_from_the_head(tmp_path):
    folder = make_checkpoint(tmp_path, "llama", tie_word_embeddings=True)
    engine = Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="float32"))
    assert not hasattr(embedding_of(engine), "weight")
    looked_up = embedding_of(engine)(torch.arange(engine.info.vocab_size))
    products = engine.runner.model.lm_head(torch.eye(looked_up.shape[1]))
    torch.testing.assert_close(looked_up, products.T)


def test_an_embedding_of_its_own_stays(tmp_path):
    folder = make_checkpoint(tmp_path, "llama", tie_word_embeddings=False)
    engine = Engine(EngineConfig(model_id=str(folder), device="cpu", dtype="float32"))
    assert embedding_of(engine).weight.shape[0] == engine.info.vocab_size


class Opaque:
    """A kernel of whose packed weights nobody knows the layout."""

    def pack(self, weight):
        return weight

    def __call__(self, x, packed, bias):
        return x @ packed.T


def test_a_kernel_that_finds_no_rows_leaves_the_embedding_its_own_weight():
    embedding = Embedding(7, 64, SimpleNamespace(dtype=torch.float32, kernels=tables))
    embedding.tie(SimpleNamespace(kernel=Opaque(), in_features=64, is_whole=True))
    embedding.load(SimpleNamespace(read=lambda name, *size, dtype: torch.ones(size, dtype=dtype)))
    assert torch.equal(embedding(torch.tensor([3])), torch.ones(1, 64))


def test_int8_rows_are_rounded_as_they_are_multiplied():
    weight = torch.randn(7, 64)
    packed = reference.linear_int8.pack(weight)
    rows = reference.linear_int8.rows(packed, torch.arange(7), torch.float32)
    torch.testing.assert_close(rows, reference.linear_int8(torch.eye(64), packed, None).T)
    assert nn.functional.mse_loss(rows, weight) < 1e-3
