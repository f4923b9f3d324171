"""The processes of a run: how they find each other, agree, and notice that one is gone.

A run on one machine is one process, and all of this stands aside. On many, each machine runs the
same command; `joined` makes them one run, of which the first process writes what is to be read.
"""

from ldm_scaling.hosts.agreement import all_say, check_agreed, first_says, is_first, wait_for_all
from ldm_scaling.hosts.joining import define_flags, joined
from ldm_scaling.hosts.signals import sigterm_heard

__all__ = [
    "all_say",
    "check_agreed",
    "define_flags",
    "first_says",
    "is_first",
    "joined",
    "sigterm_heard",
    "wait_for_all",
]
