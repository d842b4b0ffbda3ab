"""The options of `shunter submit`, with their help."""

from pathlib import Path
from typing import Annotated

import typer

from shunter.client.result_files import ResultFormat

SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Publish the good lines though others are bad.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the requests to their results.")]
FollowStreams = Annotated[
    bool,
    typer.Option(
        "--follow",
        help="Print answers as they come, of requests whose body has stream: true; waits.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", min=0, metavar="SECONDS", help="Longest wait; else as long as it takes."
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", help="Where --wait writes the results, as JSONL.")
]
Format = Annotated[
    ResultFormat,
    typer.Option("--format", help="Of --output: results, or lines of a Batch output file."),
]
Errors = Annotated[
    Path | None,
    typer.Option("--errors", help="Where requests without an answer go, in place of --output."),
]
InOrder = Annotated[
    bool, typer.Option("--in-order", help="Write results in the order of their requests.")
]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Of lines without one.")]
Deadline = Annotated[
    str | None,
    typer.Option(
        "--deadline",
        help="Of lines without one: 90s, 24h, or a time in ISO 8601, UTC if it says none.",
    ),
]
Tier = Annotated[str | None, typer.Option("--tier", help="Service tier of lines without one.")]
QuoteMost = Annotated[
    float | None,
    typer.Option(
        "--quote",
        min=0,
        metavar="USD",
        help="Ask first what all lines cost by --deadline; publish them bound to the cheapest"
        " offer, and nothing where that is more than this.",
    ),
]
Regions = Annotated[
    list[str] | None, typer.Option("--region", help="Of lines without regions; repeatable.")
]
Constraints = Annotated[
    list[str] | None,
    typer.Option(
        "--constraint",
        metavar="NAME=VALUE",
        help="Of lines without it, such as precisions=fp8,int8; repeatable.",
    ),
]
