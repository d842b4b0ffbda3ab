"""Side-by-side measurements: ``python -m benchmarks`` prints the table of docs/performance.md."""
