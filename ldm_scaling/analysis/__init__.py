"""From records to the answer: how big a model should be for a given budget, and how sure that is.

Reads records and nothing else (Table 1 counts the networks of the family besides), so that every
figure and the report rebuild on a laptop. `study` groups records into comparable points,
`frontier` says who wins at which cost, `claims` puts the paper's claims to the data,
`guidance_optimum`, `scaling_fit` and `stability` answer what their names say, `findings` puts it
all in plain words. `figures` and `report` show it; they load matplotlib and are imported by name.
"""

from ldm_scaling.analysis.claims import compare_pairs, paper_claims
from ldm_scaling.analysis.frontier import segments, trace
from ldm_scaling.analysis.guidance_optimum import best_guidance
from ldm_scaling.analysis.ranking import METRICS
from ldm_scaling.analysis.scaling_fit import fit_power_law
from ldm_scaling.analysis.stability import winner_stability
from ldm_scaling.analysis.study import Study

__all__ = [
    "METRICS",
    "Study",
    "best_guidance",
    "compare_pairs",
    "fit_power_law",
    "paper_claims",
    "segments",
    "trace",
    "winner_stability",
]
