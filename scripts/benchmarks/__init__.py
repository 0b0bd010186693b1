"""What `scripts/bench` is made of.

Two kinds of processes take part:

- The *bench* (`cli`, `rows`, `side`, `pairs`, `watch`, `table`, `picture`) chooses, times what only shows from
  outside, and prints.
- A *side* (the package `worker`) is a fresh process that has loaded one tool and nothing else. It waits for an order,
  does one round of work, and answers with figures.

On a machine that others use too, absolute times say little. So each round of a side runs between two rounds of its
*floor*, the bare work, and the ratio of a row is the median of those neighbours' ratios.
"""
