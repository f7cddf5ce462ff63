"""What tgi-gaudi registers, on a host whose driver has a Gaudi 2, or as many as HABANA_STANDIN_CARDS says."""

import os
import tempfile
from pathlib import Path

from tgi_core.plugins import hookimpl
from tgi_gaudi.plugin import tgi_register_kernels, tgi_register_models
from tgi_gaudi.probe import probe

__all__ = ["tgi_probe_device", "tgi_register_kernels", "tgi_register_models"]

DRIVER = {"dev/accel/accel{}": "", "sys/class/accel/accel{}/device/device_type": "GAUDI2\n"}


@hookimpl
def tgi_probe_device():
    with tempfile.TemporaryDirectory() as root:
        for card in range(int(os.environ.get("HABANA_STANDIN_CARDS", "1"))):
            for name, text in DRIVER.items():
                path = Path(root, name.format(card))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        return probe(Path(root))
