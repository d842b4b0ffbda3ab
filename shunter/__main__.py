"""``python -m shunter``: the console script where none is installed on the path."""

from shunter.cli import main

main()
