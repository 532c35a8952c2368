"""Partners are found where they were planted, and by nobody where there are none."""

import numpy as np
import pytest

from toushi.probe.analysis.pairs import cross_retrieval
from toushi.probe.base.errors import ToushiError

PAIRS, WIDE = 60, 32


@pytest.fixture(scope="module")
def made():
    """Nothing in common at layer 0, a little at 1, nearly everything at 2; each side far off in a direction of its own."""
    random = np.random.default_rng(0)
    meaning, (a, b) = random.normal(size=(PAIRS, WIDE)), random.normal(size=(2, 3, PAIRS, WIDE))
    share = np.array([0, 0.6, 5.0])[:, None, None]
    return a + share * meaning + 10 * random.normal(size=WIDE), b + share * meaning + 10 * random.normal(size=WIDE)


def test_partners_are_found_where_they_were_planted(made):
    found = cross_retrieval(*made, seed=1)
    assert found.retrieval[0] < 0.1 < found.retrieval[1] < found.retrieval[2] and found.retrieval[2] > 0.99
    assert abs(found.margin[0]) < 0.05 < found.margin[1] < found.margin[2]
    assert (found.retrieval_low <= found.retrieval).all() and (found.retrieval <= found.retrieval_high).all()
    assert (abs(found.retrieval_shuffled - 1 / PAIRS) < 0.01).all()
    assert found.retrieval[0] <= found.retrieval_shuffled_high[0] + 0.03
    np.testing.assert_allclose(found.right.mean("pair"), found.retrieval)
    np.testing.assert_allclose(found.same - found.different, found.margin, atol=1e-9)


def test_without_centring_what_a_side_has_in_common_is_most_of_it(made):
    plain, found = cross_retrieval(*made, centred=False), cross_retrieval(*made)
    assert (abs(plain.margin) < abs(found.margin) + 0.05).all() and plain.margin[2] < found.margin[2] / 2
    assert (abs(plain.different) > abs(found.different)).all()


def test_sides_may_be_exchanged(made):
    a, b = made
    np.testing.assert_allclose(cross_retrieval(a, b).retrieval, cross_retrieval(b, a).retrieval)


def test_rows_of_one_name_are_partners_of_each_other():
    random = np.random.default_rng(2)
    meaning = random.normal(size=(10, WIDE))[np.arange(30) % 10]
    a, b = (meaning + 0.1 * random.normal(size=(1, 30, WIDE)) for _ in "ab")
    assert cross_retrieval(a, b).retrieval[0] < 0.7
    assert cross_retrieval(a, b, names=np.arange(30) % 10).retrieval[0] == 1


def test_candidates_are_those_of_the_own_part():
    """All alike: the chance is one of the part's size."""
    same = np.ones((1, 12, 4))
    found = cross_retrieval(same, same, pools=np.repeat(range(4), 3), shuffles=50)
    assert found.retrieval[0] == pytest.approx(1 / 3) and found.attrs["candidates"] == 3
    assert found.retrieval_shuffled[0] == pytest.approx(1 / 3)


def test_intervals_know_that_pairs_of_a_sentence_hang_together(made):
    """Sixty pairs that are six, ten times over, are known no better than six."""
    often = np.arange(PAIRS) // 10
    repeated = [side[:, often] for side in made]
    apart, together = (cross_retrieval(*repeated, names=often, groups=groups) for groups in (None, often))
    assert (apart.retrieval == together.retrieval).all()
    assert ((together.margin_high - together.margin_low) > 2 * (apart.margin_high - apart.margin_low)).all()


def test_bad_input_is_told_apart():
    one = np.zeros((1, 3, 2))
    with pytest.raises(ToushiError, match="two arrays"):
        cross_retrieval(one, one[:, :2])
    with pytest.raises(ToushiError, match="each of 3 pairs, but 2 came"):
        cross_retrieval(one, one, names=[*"ab"])
    with pytest.raises(ToushiError, match="the only candidate"):
        cross_retrieval(one, one, pools=[1, 2, 3])
