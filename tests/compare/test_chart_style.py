"""Names beside the lines' ends: apart from each other, within the picture, near their ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from tst_lightning.compare.chart_style import MOST_NAMES, NAME_LENGTH, End, apart, drawing, name_ends

NAME = "tst_s16_r0.25_lr0.0010"
PLACES = st.lists(st.floats(0, 1), min_size=1, max_size=11).map(sorted)


@given(PLACES)
def test_names_are_apart_and_within_the_panel(places):
    heights = apart(places, 0.085, 0.0, 1.0)
    assert all(b - a >= 0.085 - 1e-9 for a, b in zip(heights, heights[1:], strict=False))
    assert heights[0] >= -1e-9 and heights[-1] <= 1 + 1e-9


@given(PLACES)
def test_names_that_are_apart_stay_where_they_are(places):
    kept = places[:1]
    for place in places:
        if place - kept[-1] >= 0.1:
            kept.append(place)
    assert apart(kept, 0.085, 0.0, 1.0) == pytest.approx(kept)


@pytest.mark.parametrize(("count", "spread"), [(2, 0.0), (MOST_NAMES, 0.0), (2 * MOST_NAMES, 1.0)])
def test_no_two_names_overlap_and_none_leaves_the_picture(count, spread):
    assert len(NAME) == NAME_LENGTH
    with drawing(5.2, dark=False) as made:
        panel = made.figure.subplots(1, 3)[-1]
        made.figure.subplots_adjust(left=0.055, right=0.855, bottom=0.6 / 5.2, top=4.7 / 5.2)
        panel.set_ylim(2.0, 4.0)
        ends = [End(0.5, 3.0 + spread * i / count, NAME, "3.1234 ± 0.1234", "k") for i in range(count)]
        name_ends(panel, ends)
    boxes = [Text.get_window_extent(text) for text in panel.texts]  # an annotation's own holds its leader line too
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.y0 >= 0 and box.y1 <= made.figure.bbox.height for box in boxes)
    assert all(box.x1 <= made.figure.bbox.width for box in boxes)
