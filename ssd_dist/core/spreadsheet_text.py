"""Names of classes in CSV files that a spreadsheet may open.

A spreadsheet executes a cell that begins like a formula (https://owasp.org/www-community/attacks/CSV_Injection), so
such a name is written with an apostrophe before it, and read back without it.
"""

# Tabs and carriage returns, which OWASP lists too, are escaped. The last four are the full-width forms of the others.
FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
# The columns of `detections.csv`, which `prepare` reads as annotations.
DETECTION_COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "score")


def protect_name(name: str) -> str:
    """Returns a name with an apostrophe before it if a spreadsheet would execute it, or if it looks protected.

    >>> protect_name("=1"), protect_name("'=1"), protect_name("car")
    ("'=1", "''=1", 'car')
    """
    return f"'{name}" if name.lstrip("'").startswith(FORMULA_STARTS) else name


def restore_name(cell: str) -> str:
    """Returns the name that `protect_name` wrote into a cell.

    >>> restore_name("'=1"), restore_name("''=1"), restore_name("'car'")
    ('=1', "'=1", "'car'")
    """
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA_STARTS) else cell
