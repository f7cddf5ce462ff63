import pytest

from tgi_core.plugins.visible import visible

GPUS = (("first", "GPU-1111"), ("second", "GPU-2222"))


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        (None, ["first", "second"]),
        ("1", ["second"]),
        ("1,0", ["second", "first"]),
        ("-1", []),
        ("0,9,1", ["first"]),
        ("GPU-2222", ["second"]),
        ("GPU-", []),
    ],
)
def test_visible_gpus_follow_the_variable(wish, names):
    assert [name for name, _ in visible(GPUS, wish)] == names
