"""The benchmark of what the host does: a real engine, every row of which decodes."""

from dataclasses import replace

from tgi_core.cpu.backend import CpuBackend
from tgi_core.testing.tiny import make_checkpoint


def test_every_sequence_decodes_in_every_step(tmp_path, monkeypatch):
    import host

    monkeypatch.setattr(CpuBackend, "capabilities", replace(CpuBackend.capabilities, asynchronous=True))
    monkeypatch.setattr(CpuBackend, "runner", "host:InstantRunner")
    make_checkpoint(tmp_path, "llama", max_position_embeddings=host.CONTEXT)
    engine = host.start(str(tmp_path), 3)
    steps, encoding = host.times(engine)
    assert len(steps) == len(encoding) == host.STEPS
    assert engine.stats.decode_tokens == engine.stats.running == 3
    assert {size.rows for size, step in engine.runner._recorded.items() if step} == {3}
    engine.close()
