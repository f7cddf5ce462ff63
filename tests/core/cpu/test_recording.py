import pytest
import torch

from tgi_core.cpu import native
from tgi_core.cpu.kernels import add_rms_norm, rms_norm, silu_and_mul
from tgi_core.cpu.linear import native_linear
from tgi_core.cpu.recording import record
from tgi_core.device.backend import UnrecordableStep

NOT_IN_STEPS = ("pack", "start_threads", "kernel", "replay", "usable")


@pytest.fixture(autouse=True)
def compiled(variant):
    if native.unavailable():
        pytest.skip(native.unavailable())


def test_every_kernel_of_a_step_can_be_repeated():
    names = [name for name in native._SIGNATURES if not any(word in name for word in NOT_IN_STEPS)]
    assert "tgi_linear" in names
    assert all(native.library().tgi_kernel(name.encode()) for name in names)


def test_repeats_compiled_kernels_and_pytorch_on_new_inputs():
    torch.manual_seed(1)
    x, residual, total = torch.randn(3, 64), torch.randn(3, 64), torch.zeros(3, 32)
    weight, up, down = torch.rand(64), torch.randn(64, 64), torch.randn(64, 32)
    packed_up, packed_down = native_linear.pack(up), native_linear.pack(down)
    found = {}

    def run():
        y, added = add_rms_norm(x, residual.clone(), weight, 1e-6)
        y = native_linear(silu_and_mul(native_linear(y, packed_up, None)), packed_down, None)
        first, second = (y + added.cos()).split((32, 32), -1)
        total.add_(first.flatten().unflatten(0, (3, -1)))
        found["values"], found["ids"] = second.topk(2)
        found["out"] = rms_norm(torch.cat((first, second), -1), weight, 1e-6)

    with torch.inference_mode():
        replay = record(run, [])
        recorded = dict(found)
        for seed in (2, 3):
            torch.manual_seed(seed)
            x.copy_(torch.randn(3, 64)), residual.copy_(torch.randn(3, 64)), total.zero_()
            run()
            expected, expected_total = dict(found), total.clone()
            total.zero_()
            replay()
            assert torch.equal(total, expected_total)
            assert all(torch.equal(recorded[name], expected[name]) for name in expected)


def test_memory_of_recordings_is_shared():
    memory = []
    x, weight = torch.randn(64, 4096), torch.rand(4096)
    with torch.inference_mode():
        for rows in (64, 32, 16):
            record(lambda rows=rows: rms_norm(rms_norm(x[:rows], weight, 1e-6), weight, 1e-6), memory)
    assert len(memory) == 1


@pytest.mark.parametrize("peek", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0]])
def test_what_depends_on_data_is_refused(peek):
    x = torch.randn(4)
    with torch.inference_mode(), pytest.raises(UnrecordableStep, match="waits for"):
        record(lambda: peek(x + 1), [])
    assert native.recorder.get() is None


def test_kernels_that_cannot_be_repeated_are_refused():
    with torch.inference_mode(), pytest.raises(UnrecordableStep, match="tgi_packed_size"):
        record(lambda: native_linear.pack(torch.ones(8, 8)), [])
