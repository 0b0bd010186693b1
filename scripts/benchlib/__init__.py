"""What scripts/bench is made of.

Two kinds of processes take part. The *bench* (rows, contest, watch, table, picture) chooses, times what can
only be seen from outside, and prints. A *side* (side, works, tools, loads) is a fresh process that has loaded
one tool and nothing else; it waits for an order, does one round of work, and answers with figures.

A machine that others use too is never quiet, so absolute times say little. Each round of a side is measured
between two rounds of its floor, and the ratio of a row is the median of those neighbours' ratios.
"""
