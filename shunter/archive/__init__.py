"""The archive: evidence, roots and keys in Parquet files, on a directory or an object store.

Belongs here: what the files are called and hold, writing and reading them. Needs the extra
``archive`` (pyarrow, fsspec, duckdb).
"""

from shunter.archive.layout import Archive
from shunter.archive.sink import Archiver

__all__ = ["Archive", "Archiver"]
