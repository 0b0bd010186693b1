"""What scripts/faults runs: rounds of a workload under faults, each judged by the same five figures.

A round is one driver process that runs a workload whose every result is known beforehand. The lab starts the driver,
disturbs it or lets it disturb itself, waits until it ends or stands still, and looks at what is left. Every choice of
a round comes from its seed.
"""
