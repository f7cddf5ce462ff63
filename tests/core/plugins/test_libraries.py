from tgi_core.plugins.libraries import TorchBuild, installed_version, parse_torch_version, torch_build

CPU = """
__version__ = '2.13.0+cpu'
debug = False
cuda: Optional[str] = None
git_version = 'abc'
hip: Optional[str] = None
"""


def test_a_cpu_build():
    assert parse_torch_version("2.13.0", CPU) == TorchBuild(version="2.13.0+cpu")


def test_a_cuda_build():
    assert parse_torch_version("2.13.0", CPU.replace("cuda: Optional[str] = None", "cuda: Optional[str] = '12.8'")) == (
        TorchBuild(version="2.13.0+cpu", cuda="12.8")
    )


def test_a_rocm_build():
    text = "__version__ = '2.13.0+rocm6.4'\ncuda = None\nhip = '6.4.43482'\n"
    assert parse_torch_version("?", text) == TorchBuild(version="2.13.0+rocm6.4", hip="6.4.43482")


def test_an_unreadable_build_keeps_the_version_of_its_metadata():
    assert parse_torch_version("2.13.0", "") == TorchBuild(version="2.13.0")


def test_the_installed_torch_is_found():
    assert torch_build().version.startswith(installed_version("torch").split("+")[0])


def test_a_missing_distribution_has_no_version():
    assert installed_version("no-such-distribution") == ""
