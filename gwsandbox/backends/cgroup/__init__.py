"""cgroup v2: finding a delegated root, and one leaf per attempt under it."""
