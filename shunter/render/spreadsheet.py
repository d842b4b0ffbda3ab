"""Cells of CSV files, safe for spreadsheets: no text is taken for a formula."""

# What a spreadsheet takes for the beginning of a formula, after which it may run a command.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def cell(value: object) -> object:
    """Return a value of a row; text that would be a formula is quoted, numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
