"""The backtest: a trace through a policy and a modelled fleet, in virtual time.

Belongs here: the model of the fleet, the policies that are compared, and what is counted. Pure like
the rest of ``policies``; files, plots and the solver of the bound stand in ``shunter.backtest``.
"""
