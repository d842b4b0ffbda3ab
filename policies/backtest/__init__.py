"""The backtest: a trace through a policy and a modelled fleet, in virtual time.

This package holds the model of the fleet, the compared policies, and the scores. It is pure like
the rest of ``policies``; files, plots and the solver of the bound are in ``shunter.backtest``.
"""
