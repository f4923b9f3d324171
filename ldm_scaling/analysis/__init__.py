"""From records to the answer: how big a model should be for a given budget, and how sure that is.

Reads records and nothing else (Table 1 counts the networks of the family besides), so that every
figure and the report rebuild on a laptop. `study` groups records into comparable points,
`frontier` says who wins at which cost, `claims` puts the paper's claims to the data,
`guidance_optimum`, `scaling_fit` and `stability` answer what their names say, `findings` puts it
all in plain words, and `figures`, `sample_grids` and `report` show it.
"""
