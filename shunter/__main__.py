"""``python -m shunter``: the console script where none is installed on the path."""

from shunter.entry import main

main()
