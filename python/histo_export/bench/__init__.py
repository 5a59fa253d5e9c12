"""`histo bench`: what each model costs in each runtime on this machine, and whether the difference is real.

`subjects` says what is measured, `measure` how (its first page argues what a fair timing is), `worker` is the process
that is timed, `stats` judges, `layers` asks the runtimes' profilers, `report` and `plots` show it, `run` holds it all
together. Nothing is imported here, because every worker imports this package.
"""
