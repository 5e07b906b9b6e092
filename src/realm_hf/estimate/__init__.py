"""`realm-hf estimate`: what a run will take, before it is begun: memory, refresh time, staleness, total time.

Everything follows from counted floating-point operations and bytes, and from a few measured rates (`rates.json`, with
the machine that they come from). Each estimate says what was assumed; every assumption is an option.
"""

from realm_hf.estimate.costs import Estimate, estimate_run, time_in_words
from realm_hf.estimate.plan import Plan, Rates, packaged_rates
from realm_hf.estimate.shapes import MODELS, ModelShape

__all__ = [
    "MODELS",
    "Estimate",
    "ModelShape",
    "Plan",
    "Rates",
    "estimate_run",
    "packaged_rates",
    "time_in_words",
]
