"""Class labels: contiguous, deterministic, and fixed by a class file or the manifest."""

import random

import pytest

from pipelines.annotations import Category, Problem
from pipelines.classes import ClassRules, ClassTable, build_class_tables, parse_class_file
from ssd_dist.core.errors import DataError

NAMED = [Category(name, 0, name) for name in ("dog", "cat", "Bird", "cat")]
NUMBERED = [Category("0/90", 90, "toothbrush"), Category("0/1", 1, "person"), Category("0/13", 13, "stop sign")]


def build_class_table(categories, rules) -> ClassTable:
    """Returns the class table of a job with one split."""
    return build_class_tables(categories, [0], rules)[0]


def test_splits_share_their_labels_but_not_their_ids():
    categories = [
        Category("0/1", 1, "cat", split=0),
        Category("0/1", 1, "dog", split=1),
        Category("0/2", 2, "cat", split=1),
    ]
    tables = build_class_tables(categories, [0, 1], ClassRules())
    assert tables[0].names == tables[1].names == ("cat", "dog")
    assert [tables[0].find("0/1"), tables[1].find("0/1"), tables[1].find("0/2")] == [(1, "cat"), (2, "dog"), (1, "cat")]
    assert isinstance(tables[0].find("0/2"), Problem)


def test_classes_are_sorted_by_number_then_name_for_any_input_order():
    for seed in range(5):
        random.Random(seed).shuffle(NAMED)
        random.Random(seed).shuffle(NUMBERED)
        assert build_class_table(NAMED, ClassRules()).names == ("Bird", "cat", "dog")
        assert build_class_table(NUMBERED, ClassRules()).names == ("person", "stop sign", "toothbrush")


def test_labels_start_at_one_without_gaps():
    table = build_class_table(NUMBERED, ClassRules())
    assert [table.find(f"0/{number}") for number in (1, 13, 90)] == [
        (1, "person"), (2, "stop sign"), (3, "toothbrush"),
    ]  # fmt: skip


def test_two_files_may_use_different_ids_for_one_class():
    table = build_class_table([*NUMBERED, Category("1/7", 7, "person")], ClassRules())
    assert table.find("1/7") == table.find("0/1")
    assert len(table.names) == 3


def test_fixed_names_keep_their_order_and_other_classes_are_unknown():
    table = build_class_table(NAMED, ClassRules(fixed=("dog", "cow", "cat")))
    assert table.names == ("dog", "cow", "cat")
    found = table.find("Bird")
    assert isinstance(found, Problem)
    assert found.reason == "unknown_class"
    assert "dog, cow, cat" in found.detail


def test_classes_are_included_and_excluded():
    included = build_class_table(NAMED, ClassRules(include=("cat", "dog")))
    assert included.names == ("cat", "dog")
    assert included.find("Bird").reason == "excluded_class"
    excluded = build_class_table(NAMED, ClassRules(exclude=("cat",)))
    assert excluded.names == ("Bird", "dog")
    assert excluded.find("cat").reason == "excluded_class"


def test_excluded_classes_do_not_change_the_labels_of_fixed_names():
    table = build_class_table(NAMED, ClassRules(fixed=("dog", "cat"), exclude=("dog",)))
    assert table.find("dog").reason == "excluded_class"
    assert table.find("cat") == (2, "cat")


@pytest.mark.parametrize(
    ("categories", "rules", "words"),
    [
        (NAMED, ClassRules(exclude=("cat", "dog", "Bird")), "no classes: --include_classes"),
        (NAMED, ClassRules(exclude=("dogs",)), "did you mean 'dog'"),
        (NAMED, ClassRules(include=("zebra",)), "the dataset has"),
        ([Category("0/1", 1, "cat"), Category("0/1", 1, "dog")], ClassRules(), "1 has two names, 'cat' and 'dog'"),
    ],
)
def test_invalid_rules_are_rejected(categories, rules, words):
    with pytest.raises(DataError, match=words):
        build_class_table(categories, rules)


def test_class_files_are_parsed_and_checked():
    assert parse_class_file("dog\n\n cat \n", "names.txt") == ("dog", "cat")
    for text in ("", "\n\n", "dog\ndog\n"):
        with pytest.raises(DataError, match=r"names\.txt"):
            parse_class_file(text, "names.txt")
