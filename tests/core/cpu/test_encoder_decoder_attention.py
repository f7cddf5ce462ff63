"""Encoder, causal and cross-attention layers of one model on one cache, against attention written out."""

import numpy as np
import pytest
import torch

from tgi_core.attention.base import AttentionSpec, SourceInput, StepInput
from tgi_core.attention.reference import ReferenceAttention
from tgi_core.cpu import native
from tgi_core.cpu.attention import CpuAttention
from tgi_core.cpu.torch_attention import TorchAttention
from tgi_core.kernels.ops import KernelQuery

needs_native = pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable() or "native kernels are there")
BACKENDS = [ReferenceAttention, TorchAttention, pytest.param(CpuAttention, marks=needs_native)]
BLOCK_SIZE, NUM_BLOCKS = 32, 64

SHAPES = {
    "multi-head": {"heads": 4, "kv_heads": 4, "head_size": 64},
    "odd head size": {"heads": 3, "kv_heads": 3, "head_size": 24},
    "grouped": {"heads": 6, "kv_heads": 2, "head_size": 32},
}
SOURCES = (5, 33, 150, 1)
#: (sequence, decoder tokens, decoder tokens before) step by step; the encoder reads where there are none before
STEPS = (
    [(0, 1, 0), (1, 1, 0)],
    [(0, 1, 1), (2, 1, 0), (1, 1, 1)],
    [(2, 1, 1)],
    [(0, 40, 0), (2, 1, 2), (3, 2, 0)],  # the first was preempted and begins again
    [(0, 1, 40), (1, 1, 2), (3, 1, 2)],
)


class Model:
    """Two layers of each kind, with queries, keys and values of all positions drawn beforehand."""

    def __init__(self, backend_type, shape, dtype, columns):
        generator = torch.Generator().manual_seed(0)
        self.dtype = getattr(torch, dtype)
        self.specs = [
            AttentionSpec(scale=0.7 * shape["head_size"] ** -0.5, kind=kind, **shape)
            for kind in ("encoder", "encoder", "causal", "cross", "causal", "cross")
        ]
        self.backend = backend_type(
            KernelQuery(
                device="cpu",
                dtype=dtype,
                head_size=shape["head_size"],
                block_size=BLOCK_SIZE,
                encoder_decoder=True,
                relative_bias=True,
            )
        )
        self.layers = [self.backend.add_layer(spec) for spec in self.specs]
        self.backend.allocate(NUM_BLOCKS)

        def draw(kind, length):
            heads = shape["heads"] + (0 if kind == "cross" else 2 * shape["kv_heads"])
            return torch.randn(length, heads, shape["head_size"], generator=generator).to(self.dtype)

        self.sources = [
            [draw("encoder" if s.kind == "encoder" else "source", length) for s in self.specs] for length in SOURCES
        ]
        self.decoders = [[draw(s.kind, 64) for s in self.specs] for _ in SOURCES]
        self.biases = [
            torch.randn(shape["heads"], columns if s.kind == "causal" else 2 * columns - 1, generator=generator)
            if s.kind != "cross" and columns
            else None
            for s in self.specs
        ]

    def run(self, step):
        """Every layer's output of one step."""
        sequences, lengths, before = (np.array(x, dtype=np.int32) for x in zip(*step, strict=True))
        begins = [number for number, start in zip(sequences, before, strict=True) if start == 0]
        lens = np.array(SOURCES, dtype=np.int32)[sequences]
        order = np.random.default_rng(0).permutation(NUM_BLOCKS).astype(np.int32).reshape(len(SOURCES), -1)[sequences]
        source = SourceInput(_starts(lens * (before == 0)), lens, order[:, :8])
        meta = self.backend.prepare(StepInput(_starts(lengths), lengths + before, order[:, 8:], source))
        ranges = [slice(start, start + length) for length, start in zip(lengths, before, strict=True)]
        outputs = []
        for layer, (spec, bias) in enumerate(zip(self.specs, self.biases, strict=True)):
            if spec.kind == "encoder" and not begins:
                outputs.append([])
                continue
            news = [self.sources[number][layer] for number in begins]
            owns = [self.decoders[number][layer][own] for number, own in zip(sequences, ranges, strict=True)]
            if spec.kind == "cross":
                q, (k, v) = torch.cat(owns), (None, None)
                if news:
                    _, k, v = self._split(torch.cat(news))
            else:
                q, k, v = self._split(torch.cat(news if spec.kind == "encoder" else owns))
            out = self.backend.forward(self.layers[layer], q, k, v, meta, bias)
            assert out.is_contiguous()
            parts = [len(new) for new in news] if spec.kind == "encoder" else lengths.tolist()
            outputs.append(list(out.float().split(parts)))
        return outputs

    def expected(self, step):
        """The same, by the definition, for every sequence alone."""
        outputs = []
        for layer, (spec, bias) in enumerate(zip(self.specs, self.biases, strict=True)):
            outputs.append([])
            for number, length, start in step:
                if spec.kind == "encoder" and start:
                    continue
                source, own = (x.float() for x in (self.sources[number][layer], self.decoders[number][layer]))
                if spec.kind == "encoder":
                    (q, k, v), first = self._split(source), 0
                elif spec.kind == "causal":
                    (q, k, v), first = self._split(own[: start + length]), start
                    q = q[start:]
                else:
                    q, (_, k, v), first = own[start : start + length], self._split(source), 0
                outputs[-1].append(written_out(spec, q, k, v, bias, first))
        return outputs

    def _split(self, x):
        spec = self.specs[0]
        return x.split((spec.heads, spec.kv_heads, spec.kv_heads), dim=1)


def _starts(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def written_out(spec, q, k, v, bias, first):
    """Queries from position `first` on over all keys, one query at a time."""
    out = torch.empty(q.shape)
    keys, values = (x[:, [head * spec.kv_heads // spec.heads for head in range(spec.heads)]] for x in (k, v))
    for i in range(len(q)):
        seen = first + i + 1 if spec.kind == "causal" else len(k)
        scores = torch.einsum("hd,shd->hs", q[i], keys[:seen]) * spec.scale
        if bias is not None:
            middle = bias.shape[1] // 2 if spec.kind == "encoder" else bias.shape[1] - 1
            scores = scores + bias[:, (torch.arange(seen) - first - i + middle).clamp(0, bias.shape[1] - 1)]
        out[i] = torch.einsum("hs,shd->hd", scores.softmax(1), values[:seen])
    return out


def check(backend_type, shape, dtype, columns, tolerance):
    model = Model(backend_type, shape, dtype, columns)
    for step in STEPS:
        for found, expected in zip(model.run(step), model.expected(step), strict=True):
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend_type", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("columns", [0, 1, 40, 129], ids=lambda columns: f"{columns} distances")
def test_each_kind_of_layer_sees_what_it_should(backend_type, shape, columns):
    check(backend_type, shape, "float32", columns, 1e-5)


@pytest.mark.parametrize("backend_type", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bfloat16_is_as_near_as_its_precision(backend_type, shape):
    check(backend_type, shape, "bfloat16", 40, 3e-2)


@pytest.mark.parametrize("backend_type", BACKENDS)
def test_own_keys_and_those_of_sources_share_the_memory_of_blocks(backend_type):
    shape = SHAPES["grouped"]
    decoder = backend_type(KernelQuery(device="cpu", dtype="float32", head_size=32, block_size=BLOCK_SIZE))
    for _ in range(2):
        decoder.add_layer(AttentionSpec(scale=1.0, **shape))
    assert Model(backend_type, shape, "float32", 0).backend.block_bytes() == decoder.block_bytes()
