"""Doctor: looks at a host and a cluster, and names what is wrong together with its fix.

A check is a function from facts to findings. What a check looks at (sysfs, procfs, limits,
libraries, answers of servers) comes with its argument, so that tests can plant any fault.
"""

from kvstore.doctor.findings import Finding, Level, fail, ok, warn
from kvstore.doctor.runner import Check, run

__all__ = ["Check", "Finding", "Level", "fail", "ok", "run", "warn"]
