"""``shunter demo``: the whole system on one machine, real traffic through it, and a check.

Belongs here: turning the packaged trace into requests, running the processes, watching and judging
them, reporting the outcome. Does not: anything that the system itself needs.
"""

from shunter.demo.installation import Plan
from shunter.demo.real import RealOutcome, run_real
from shunter.demo.run import DemoOutcome, run_demo

__all__ = ["DemoOutcome", "Plan", "RealOutcome", "run_demo", "run_real"]
