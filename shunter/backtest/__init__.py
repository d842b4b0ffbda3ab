"""The backtest's outside: trace files, the runs to compare, the lower bound, tables and plots."""
