"""Whole numbers of records that travel in headers: what every decoder reads and writes alike."""

from typing import Annotated

from msgspec import Meta

# What is longer could be read and not be written again.
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
