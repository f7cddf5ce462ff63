import subprocess
import sys

import pytest

import tgi_core


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, tgi_core; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lazy_names_resolve():
    assert tgi_core.SamplingParams().temperature == 1.0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonesuch"):
        getattr(tgi_core, "nonesuch")  # noqa: B009
