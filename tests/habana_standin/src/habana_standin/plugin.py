"""What tgi-gaudi registers, on a host whose driver has a Gaudi 2."""

import tempfile
from pathlib import Path

from tgi_core.plugins import hookimpl
from tgi_gaudi.plugin import tgi_register_kernels, tgi_register_models
from tgi_gaudi.probe import probe

__all__ = ["tgi_probe_device", "tgi_register_kernels", "tgi_register_models"]

DRIVER = {"dev/accel/accel0": "", "sys/class/accel/accel0/device/device_type": "GAUDI2\n"}


@hookimpl
def tgi_probe_device():
    with tempfile.TemporaryDirectory() as root:
        for name, text in DRIVER.items():
            path = Path(root, name)
            path.parent.mkdir(parents=True)
            path.write_text(text)
        return probe(Path(root))
