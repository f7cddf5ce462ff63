import os

import pytest

from tgi_core.plugins.libraries import TorchBuild
from tgi_rocm import probe as module
from tgi_rocm.probe import gfx_name

ROCM_TORCH = TorchBuild(version="2.13.0+rocm6.4", hip="6.4.43482")
NODES = "sys/class/kfd/kfd/topology/nodes"
MI250 = {
    "dev/kfd": "",
    f"{NODES}/0/properties": "cpu_cores_count 64\ngfx_target_version 0\n",
    f"{NODES}/1/properties": "cpu_cores_count 0\ngfx_target_version 90010\nunique_id 81985529216486895\n",
    f"{NODES}/2/properties": "cpu_cores_count 0\ngfx_target_version 90402\n",
}
RADEON = {f"{NODES}/3/properties": "cpu_cores_count 0\ngfx_target_version 110000\n"}
NAMES = ("AMD Instinct MI200 series (gfx90a)", "AMD Instinct MI300 series (gfx942)")


def probe(root, build=ROCM_TORCH, **environment):
    return module.probe(root, build, environment)


def test_a_usable_gpu_is_named(host):
    found = probe(host(MI250), ROCM_TORCH)
    assert found.products == NAMES


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"HIP_VISIBLE_DEVICES": "1"}, NAMES[1:]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, NAMES[1:]),
        ({"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, NAMES[:1]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, NAMES[1:]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-0123456789abcdef"}, NAMES[:1]),
    ],
)
def test_variables_hide_gpus(host, environment, names):
    assert probe(host(MI250), **environment).products == names


def test_all_gpus_are_hidden(host):
    reason = probe(host(MI250), HIP_VISIBLE_DEVICES="", ROCR_VISIBLE_DEVICES="0").reason
    assert reason == "ROCR_VISIBLE_DEVICES='0', HIP_VISIBLE_DEVICES='' hides all 2 GPUs"


def test_a_gpu_that_no_kernels_are_made_for_is_to_be_left_out(host):
    root = host(MI250 | RADEON)
    reason = probe(root).reason
    assert (
        "tgi-rocm is made for gfx90a and gfx942, not for gfx1100; leave it out with HIP_VISIBLE_DEVICES=0,1" in reason
    )
    assert probe(root, HIP_VISIBLE_DEVICES="0,1").products == NAMES


def test_only_gpus_that_no_kernels_are_made_for(host):
    reason = probe(host(MI250 | RADEON), HIP_VISIBLE_DEVICES="2").reason
    assert reason.startswith("AMD Radeon RX 7900 series (gfx1100): tgi-rocm is made for")
    assert probe(host({"dev/kfd": ""} | RADEON), ROCR_VISIBLE_DEVICES="2").reason.endswith("use --device cpu")


def test_no_gpu(tmp_path):
    assert probe(tmp_path, ROCM_TORCH).reason == "no AMD GPU in this machine"


def test_an_amd_processor_is_no_gpu(host, pci):
    assert probe(host(pci("0x1002", kind="0x060000")), ROCM_TORCH).reason == "no AMD GPU in this machine"


def test_a_gpu_without_a_driver(host, pci):
    assert "load the amdgpu driver" in probe(host(pci("0x1002")), ROCM_TORCH).reason


def test_a_driver_that_sees_no_gpu(host):
    assert "sees no GPU" in probe(host({"dev/kfd": ""}), ROCM_TORCH).reason


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_access(host):
    root = host(MI250)
    (root / "dev/kfd").chmod(0)
    assert "add this user to the group render" in probe(root, ROCM_TORCH).reason


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (TorchBuild(version=""), "PyTorch is not installed"),
        (TorchBuild(version="2.13.0+cpu"), "PyTorch 2.13.0+cpu is built without ROCm"),
        (TorchBuild(version="2.13.0", cuda="12.8"), "built without ROCm"),
    ],
)
def test_the_torch_build_must_fit(host, build, reason):
    assert reason in probe(host(MI250), build).reason


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (90008, "gfx908"),
        (90010, "gfx90a"),
        (90402, "gfx942"),
        (90500, "gfx950"),
        (100300, "gfx1030"),
        (110000, "gfx1100"),
    ],
)
def test_gfx_names(version, name):
    assert gfx_name(version) == name
