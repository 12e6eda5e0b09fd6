"""Parser of "CVAT for images": shapes, and files that are wrong or malicious."""

import pytest
from parsed import describe, reasons

from pipelines.readers.cvat_xml import parse_cvat_xml

BOX = '<box label="bolt" source="manual" occluded="0" xtl="10.5" ytl="12" xbr="50.1" ybr="60" z_order="0"></box>'


def make_xml(shapes, attributes='id="0" name="a.jpg" width="96" height="72"'):
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task/></meta>'
    return f"{head}<image {attributes}>{shapes}</image></annotations>".encode()


def parse(shapes, *attributes):
    (image,) = parse_cvat_xml(make_xml(shapes, *attributes))
    return image


def test_boxes_are_read_and_tags_are_not_objects():
    image = parse(f'{BOX}<tag label="indoor" source="manual"></tag><box label="nut" xtl="1" ytl="2" xbr="3" ybr="4"/>')
    assert (image.filename, image.size, image.problem, image.reduced) == ("a.jpg", (72, 96), None, 0)
    assert describe(image) == [("bolt", (12, 10.5, 60, 50.1)), ("nut", (2, 1, 4, 3))]
    assert [box.where for box in image.boxes] == ["image 0, box 0", "image 0, box 1"]


@pytest.mark.parametrize(
    ("shape", "corners"),
    [
        # 40 x 20 pixels around (30, 20), turned by 90 degrees.
        ('<box label="bolt" xtl="10" ytl="10" xbr="50" ybr="30" rotation="90.0"/>', (0, 20, 40, 40)),
        ('<polygon label="bolt" points="1.0,2.0;5,3;4,9"/>', (2, 1, 9, 5)),
        ('<polyline label="bolt" points="9,1;2,8"/>', (1, 2, 8, 9)),
        ('<ellipse label="bolt" cx="30" cy="40" rx="20" ry="5"/>', (35, 10, 45, 50)),
        ('<ellipse label="bolt" cx="30" cy="40" rx="20" ry="5" rotation="90"/>', (20, 25, 60, 35)),
        ('<mask label="bolt" rle="3, 5, 8" left="4" top="6" width="5" height="7"/>', (6, 4, 13, 9)),
        (
            '<cuboid label="bolt" xtl1="10" ytl1="20" xbl1="10" ybl1="50" xtr1="30" ytr1="22" xbr1="30" ybr1="48"'
            ' xtl2="40" ytl2="18" xbl2="40" ybl2="44" xtr2="25" ytr2="16" xbr2="25" ybr2="46"/>',
            (16, 10, 50, 40),
        ),
    ],
)
def test_other_shapes_are_reduced_to_their_bounds(shape, corners):
    image = parse(shape)
    assert image.boxes[0].corners == pytest.approx(corners)
    assert image.reduced == 1


def test_points_and_skeletons_have_no_box():
    skeleton = '<skeleton label="hand"><points label="1" points="1,2"/></skeleton>'
    assert reasons(parse(f'<points label="bolt" points="1,2;3,4"/>{skeleton}')) == ["no_box", "no_box"]


@pytest.mark.parametrize(
    "bad",
    [
        BOX.replace('xtl="10.5"', ""),
        BOX.replace("10.5", "left"),
        BOX.replace("10.5", "nan"),
        BOX.replace('"bolt"', '""'),
        '<polygon label="bolt" points="1,2;3"/>',
        '<polygon label="bolt" points=""/>',
        '<mask label="bolt" rle="1" left="4"/>',
        '<star label="bolt"/>',
    ],
)
def test_a_broken_shape_is_a_box_with_a_problem(bad):
    image = parse(bad + BOX)
    assert reasons(image) == ["broken_box"]
    assert describe(image)[1] == ("bolt", (12, 10.5, 60, 50.1))


def test_an_image_without_a_name_keeps_its_boxes():
    image = parse(BOX, 'id="0"')
    assert (image.problem.reason, len(image.boxes), image.size) == ("broken_annotation", 1, None)


ENTITY = b'<!DOCTYPE x [<!ENTITY a "ha">]><annotations><image name="&a;"/></annotations>'
TRACK = (
    b'<annotations><track id="0" label="bolt"><box frame="0" xtl="1" ytl="2" xbr="3" ybr="4"/></track></annotations>'
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TRACK, 'export "CVAT for images 1.1" from CVAT'),
        (ENTITY, "DTD or an entity"),
        (b"<annotation/>", "expected <annotations>, got <annotation>"),
        (b"<annotations><annotation/></annotations>", "contains no <image>"),
        (make_xml(BOX)[:-5], "not valid XML"),
        (b"", "not valid XML"),
        (b'<?xml version="1.0" encoding="no-such"?><a/>', "not valid XML"),
    ],
)
def test_another_file_is_refused(data, message):
    with pytest.raises(ValueError, match=message) as error:
        list(parse_cvat_xml(data))
    assert "\n" not in str(error.value)
