"""`histo bench`: what each model costs in each runtime on this machine, and whether the difference is real.

`subjects` are the models, `measure` times them (its docstring argues what a fair timing is) as `settings` say, and
`contestants` checks each one; `worker` is the process that is timed and `worker_handle` drives it. `report` keeps the
`rows` and what follows from them, `document` makes `sections` of it, `render`, `plots` and `write` show it, and `run`
holds all together. Nothing is imported here, because every worker imports this package.
"""
