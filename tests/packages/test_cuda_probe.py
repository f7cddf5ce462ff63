import pytest

from tgi_core.plugins.libraries import TorchBuild
from tgi_cuda.probe import Driver, ask_nvml, probe

H100 = ("NVIDIA H100 80GB HBM3", "GPU-11111111-aaaa")
T4 = ("Tesla T4", "GPU-22222222-bbbb")
CUDA_TORCH = TorchBuild(version="2.13.0", cuda="12.8")
NO_NVML = "libnvidia-ml.so.1 is missing"


def ask(root, answer, build=CUDA_TORCH, **environment):
    return probe(root, environment, lambda: answer, build)


def test_a_usable_gpu_is_named(tmp_path):
    found = ask(tmp_path, Driver(cuda=(12, 8), gpus=(H100, T4)))
    assert found.products == ("NVIDIA H100 80GB HBM3", "Tesla T4")
    assert found.reason == ""


def test_no_gpu(tmp_path):
    assert ask(tmp_path, NO_NVML).reason == "no NVIDIA GPU in this machine"


def test_a_gpu_without_a_driver(host, pci):
    assert "its driver is not loaded" in ask(host(pci("0x10de")), NO_NVML).reason


def test_an_nvidia_network_card_is_no_gpu(host, pci):
    assert ask(host(pci("0x10de", kind="0x020000")), NO_NVML).reason == "no NVIDIA GPU in this machine"


def test_a_driver_without_its_library(host):
    root = host({"proc/driver/nvidia/version": "NVRM version"})
    assert "start it with --gpus all" in ask(root, NO_NVML).reason


def test_a_driver_that_sees_no_gpu(tmp_path):
    assert "sees no GPU" in ask(tmp_path, Driver(cuda=(12, 8), gpus=())).reason


def test_hidden_gpus(tmp_path):
    reason = ask(tmp_path, Driver(cuda=(12, 8), gpus=(T4,)), CUDA_VISIBLE_DEVICES="").reason
    assert "CUDA_VISIBLE_DEVICES='' hides all 1 GPUs" in reason


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (TorchBuild(version=""), "PyTorch is not installed"),
        (TorchBuild(version="2.13.0+cpu"), "PyTorch 2.13.0+cpu is built without CUDA"),
        (TorchBuild(version="2.13.0", cuda="13.0"), "runs CUDA 12.8 at most, PyTorch 2.13.0 needs 13.0"),
        (TorchBuild(version="2.13.0", cuda="12.9"), ""),
    ],
)
def test_the_torch_build_must_fit(tmp_path, build, reason):
    found = ask(tmp_path, Driver(cuda=(12, 8), gpus=(T4,)), build)
    assert reason in found.reason
    assert found.available is (reason == "")


def test_nvml_answers_or_says_why_not():
    assert isinstance(ask_nvml(), Driver | str)
