"""A machine with one Inferentia2 device of two cores, where there is none: what optimum-neuron reads of the host."""

import os
import warnings

CORES = 1  #: that a model may take here; the stand-ins know one


def prepare():
    """To be called before anything of optimum-neuron is imported."""
    os.environ["USE_TORCH_XLA"] = "0"  # transformers would look for devices
    os.environ["NEURON_PLATFORM_TARGET_OVERRIDE"] = "trn1"  # what Inferentia2 is compiled for


def pretend():
    """Answer for the driver."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optimum-neuron, which looks for the driver first
        from optimum.neuron.models.inference import modeling_utils
        from optimum.neuron.models.inference.backend import pretrained_model
        from optimum.neuron.utils import instance, system

    system.get_neuron_major = instance.get_neuron_major = lambda: 240
    system.get_instance_name = instance.get_instance_name = lambda: "inf2.xlarge"
    instance.current_instance_type.cache_clear()
    system.get_available_cores = modeling_utils.get_available_cores = lambda: CORES
    pretrained_model.get_available_cores = system.get_available_cores
    pretrained_model.get_neuron_device_memory = lambda: "not known here"


def write(root):
    """The driver's files of such a machine, under `root`."""
    (root / "dev").mkdir()
    (root / "dev/neuron0").touch()
    name = root / "sys/class/neuron_device/neuron0/neuron_core0/info/architecture/device_name"
    name.parent.mkdir(parents=True)
    name.write_text("inferentia2\n")
    return root
