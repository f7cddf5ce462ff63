from tgi_core import builtin
from tgi_core.cpu import processor


def test_the_cpu_is_always_available_and_named_by_its_processor():
    probe = builtin.tgi_probe_device()
    assert probe.available
    assert probe.products == (processor.product(),)
