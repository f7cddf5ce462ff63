"""What is marked works, and says so to whoever uses it."""

import pytest

from tgi_core.deprecation import deprecated, deprecation


@deprecated(since="1.2", use="multiply")
def times(a, b):
    """Of two numbers."""
    return a * b


class Device:
    @property
    @deprecated(since="1.3", use="product")
    def model(self):
        return "One"


@deprecated(since="1.4", use="Device")
class Card:
    """A card."""

    def __init__(self, number):
        self.number = number


def test_a_function_warns_when_it_is_called():
    with pytest.warns(DeprecationWarning, match="^times is deprecated since tgi-core 1.2; use multiply$") as caught:
        assert times(2, b=3) == 6
    assert caught[0].filename == __file__  # the caller's


def test_a_property_warns_when_it_is_read():
    with pytest.warns(DeprecationWarning, match="Device.model is deprecated since tgi-core 1.3; use product"):
        assert Device().model == "One"


def test_a_class_warns_when_it_is_made_and_when_it_is_inherited():
    with pytest.warns(DeprecationWarning, match="Card is deprecated since tgi-core 1.4; use Device"):
        assert Card(7).number == 7
    with pytest.warns(DeprecationWarning, match="Card is deprecated"):

        class Better(Card):
            pass

    assert Better(8).number == 8


def test_the_documentation_says_it_too():
    assert times.__doc__ == "Of two numbers.\n\nDeprecated since 1.2: use multiply."
    assert Card.__doc__.endswith("Deprecated since 1.4: use Device.")


def test_what_is_not_marked_is_not():
    assert deprecation(times).startswith("times is deprecated")
    assert deprecation(Device) == ""
