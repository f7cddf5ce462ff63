import pytest


@pytest.fixture
def growth():
    import growth

    return growth


def test_growth_in_proportion_is_no_cliff(growth):
    assert growth.cliffs({(batch, context): batch * context for batch, context in growth.all_points()}) == []


def test_a_jump_is_a_cliff_at_its_place(growth):
    found = {point: 10.0 + 30.0 * (point[0] > 16) for point in growth.all_points()}
    assert growth.cliffs(found) == [
        f"context {context}: batch 16 to 17 costs 4.00 times as much" for context in ("128", "1,024")
    ]
