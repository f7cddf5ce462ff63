"""What the host's processor is, read from files that Linux keeps."""

import pytest

from tgi_core.cpu import processor

CACHED = (processor._field, processor.product, processor.flags)
AVX512 = "avx512f avx512bw avx512vl avx512dq avx512cd avx512_bf16 avx512_vnni"


@pytest.fixture(autouse=True)
def variant(tmp_path, monkeypatch):
    """No kernels are needed here, but a machine of our own making."""
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    for cached in CACHED:
        cached.cache_clear()
    yield
    for cached in CACHED:
        cached.cache_clear()


def test_a_name(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast 9000\n")
    assert processor.product() == "Fast 9000"


def test_a_machine_that_tells_nothing_still_has_a_name_and_no_variant():
    assert processor.product()
    assert processor.variants() == ()
    assert not processor.has_fast_bfloat16()


@pytest.mark.parametrize(
    ("flags", "variants", "fast"),
    [
        ("sse4_2", (), False),
        ("avx2 fma bmi2 f16c", ("avx2",), False),
        (f"avx2 fma bmi2 f16c {AVX512}", ("avx512bf16", "avx2"), True),
        (f"avx2 fma bmi2 f16c {AVX512} amx_tile amx_bf16 amx_int8", ("amx", "avx512bf16", "avx2"), True),
    ],
)
def test_variants_best_first(tmp_path, flags, variants, fast):
    (tmp_path / "cpuinfo").write_text(f"flags\t: {flags}\n")
    assert processor.variants() == variants
    assert processor.has_fast_bfloat16() is fast
