"""Cells of CSV files, safe for spreadsheets: no text is taken for a formula."""

# Characters that begin a formula in a spreadsheet, which may then run a command.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def cell(value: object) -> object:
    """Return a value of a row; text that would be a formula is quoted, numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
