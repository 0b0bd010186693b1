"""Cgroups that tests make for themselves, below the delegated root."""

from __future__ import annotations

import os

import features
from support import run_one

from gwsandbox.backends.cgroup.delegation import find_root


def make_group(name: str) -> str:
    """The path of a new cgroup of our own, to which the root gives its controllers."""
    features.need("delegated")
    assert run_one("cgroup", abs, -1).success  # from here on the root gives its controllers on
    path = f"{find_root().path}/{name}"
    os.mkdir(path)
    return path
