"""``shunter demo``: the whole system on one machine, real traffic through it, and a check.

Belongs here: what turns the packaged trace into requests, starts and tends the processes, watches
them, judges the outcome and tells of it. Does not: anything that the system itself needs.
"""

from shunter.demo.run import DemoOutcome, Plan, run_demo

__all__ = ["DemoOutcome", "Plan", "run_demo"]
