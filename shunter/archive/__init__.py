"""The archive: evidence, roots and keys in Parquet files, on a directory or an object store.

Belongs here: what the files are called and hold, writing and reading them. Needs the extra
``archive`` (pyarrow, fsspec, duckdb).
"""

from shunter.archive.layout import Archive, ArchiveError
from shunter.archive.sink import Archiver, parse_holds

__all__ = ["Archive", "ArchiveError", "Archiver", "parse_holds"]
