"""What `benchmarks/load.py` is made of.

service   a service of its own: database, processes, and what they use while it runs
rows      a table full of finished jobs
wire      HTTP as bare as it can be, so that two hundred clients cost little
tally     what was asked and how long it took
checks    what answers must hold
clients   pollers, streamers, submitters
phases    what one process full of clients does in each phase
"""
