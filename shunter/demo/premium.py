"""The cost of each request of a demo on premium GPUs, from its evidence."""

from policies import Options
from shunter.demo.ledger import Ledger
from streams.live.premium import able_premium, premium_usd_of
from topics.records.evidence import ENDS


def premium_costs(ledger: Ledger, options: Options) -> dict[str, float]:
    """Return what each request would have cost on premium GPUs, by id, in US dollars.

    Of a request that no premium GPU might have served, or that did not run, there is none.
    """
    costs = {}
    for name, steps in ledger.evidence.items():
        decisions = [s for s in steps if s.profile is not None and s.step != "released"]
        ends = [s for s in steps if s.step in ENDS]
        if decisions and ends and (asked := decisions[-1].profile) is not None:
            able = able_premium(decisions[-1], options)
            usd = premium_usd_of(ends[-1], asked, able, options)
            if usd is not None:
                costs[name] = usd
    return costs
