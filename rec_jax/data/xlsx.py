"""The first sheet of an Excel file as CSV, read by fastexcel (calamine), an extra of this package.

Tables that are published as `.xlsx` have one header row; every cell is taken as text, and a date
as ISO 8601.
"""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

from rec_jax.errors import InputError, first_line

UNPACKED_LIMIT = 2 << 30  # bytes of all parts of the file, as its own directory states them


def check_installed() -> None:
    """Raises InputError where fastexcel is not installed."""
    if importlib.util.find_spec("fastexcel") is None:
        raise InputError("Excel files are read by fastexcel, which is not installed; expected "
                         "`pip install 'rec-jax[xlsx]'`")


def sheet_to_csv(source: Path, target: Path) -> None:
    """Write the first sheet of `source` to CSV file `target`.

    Raises:
      InputError: no Excel file, one that would unpack to too much, or fastexcel is not installed.
    """
    check_installed()
    import fastexcel

    try:
        with zipfile.ZipFile(source) as book:
            size = sum(part.file_size for part in book.infolist())
        if size > UNPACKED_LIMIT:
            raise ValueError(f"it unpacks to {size} bytes, expected at most {UNPACKED_LIMIT}")
        sheet = fastexcel.read_excel(source).load_sheet(0, dtypes="string")
        sheet.to_polars().write_csv(target)
    except (fastexcel.FastExcelError, ValueError, zipfile.BadZipFile) as error:
        cause = first_line(error)
        raise InputError(f"{source} cannot be read as an Excel file: {cause}") from None
