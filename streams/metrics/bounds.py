"""Upper bounds of histogram buckets, by the quantity measured."""

# Up to a day, which deferrable work may take.
LONG_S = (120.0, 300.0, 1_200.0, 3_600.0, 14_400.0, 86_400.0)
# The bounds that the GenAI conventions advise, and longer ones.
TTFT_S = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0)
TPOT_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
DURATION_S = tuple(0.01 * 2**n for n in range(14))
TRANSACTION_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TOKENS = tuple(float(4**n) for n in range(11))
RATIOS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
