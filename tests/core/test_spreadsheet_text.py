"""Names in CSV files are protected from spreadsheets, and read back unchanged."""

from hypothesis import given
from hypothesis import strategies as st

from ssd_dist.core.spreadsheet_text import FORMULA_STARTS, protect_name, restore_name


@given(st.text(alphabet=[*FORMULA_STARTS, "'", "a", "1"], max_size=6))
def test_a_protected_name_is_no_formula_and_is_restored(name):
    cell = protect_name(name)
    assert not cell.startswith(FORMULA_STARTS)
    assert restore_name(cell) == name
