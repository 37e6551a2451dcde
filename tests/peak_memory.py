"""The peak of a process's memory, as source for scripts that tests run in one of their own."""

PEAK = """
import resource, sys
from pathlib import Path


def peak():
    if sys.platform == "linux":  # ru_maxrss begins at what the process that started this one has
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


"""
