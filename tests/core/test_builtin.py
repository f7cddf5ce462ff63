from tgi_core import builtin


def test_the_cpu_is_named_by_its_processor(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast 9000\n")
    assert builtin.processor_name(str(cpuinfo)) == "Fast 9000"


def test_a_processor_without_a_name_is_named_by_its_architecture(tmp_path):
    assert builtin.processor_name(str(tmp_path / "missing"))


def test_the_cpu_probe_is_always_available():
    assert builtin.tgi_probe_device().available
