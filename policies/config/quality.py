"""Quality of a variant: the share of the published weights' scores in benchmarks that it keeps.

The figures by precision are for variants of which the fleet declares none:

- fp8, int8, int4: Kurtic et al., "Give Me BF16 or Give Me Death?" (arXiv 2411.02355), on the Llama
  3.1 family: FP8 is lossless within noise, INT8 loses 1 to 3 %, INT4 weights rival INT8.
- fp4: Egiazarian et al., "Bridging the Gap" (arXiv 2509.23202): NVFP4 of llama-3.1-8b keeps 94 % of
  its mean score when rounded, 96 % when trained for it.
- mxfp4: assumed to be no better than rounded NVFP4. A model that is published at this precision
  loses nothing by it: declare 1.
"""

from types import MappingProxyType

QUALITY = MappingProxyType(
    {
        "fp32": 1.0,
        "bf16": 1.0,
        "fp16": 1.0,
        "fp8": 0.99,
        "int8": 0.98,
        "int4": 0.97,
        "fp4": 0.95,
        "mxfp4": 0.94,
    }
)
