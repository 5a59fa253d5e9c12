"""`histo study`: which pool size to ship, answered with intervals.

`design` says what is run, `runs` runs what is missing, `heads` trains heads on frozen feature maps, `verdicts` decides,
`timings` measures what a pool costs, and `report` writes the answer.
"""
