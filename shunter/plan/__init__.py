"""The cheapest fleet for a trace: a bound, a start, and a search that the backtest judges.

Belongs here: what may be rented, the programme with capacity as a variable, the search. Does not:
how a request is routed, which is the backtest's to replay.
"""
