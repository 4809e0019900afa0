"""The limits of a worker, set by the operating system; a limit that a system lacks is left out.

A worker runs code of others on text of a policy, and some scorers evaluate that text as Python. docs/robustness.md says
what each limit stops.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from pathlib import Path

SCRATCH_BYTES = 64 * 1024**2  # size of a file below the scratch folder
PROCESSES = 256  # of a worker, threads included
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
NEW_USER, NEW_PID, NEW_NET, NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000  # sched.h
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # landlock(7), the same numbers on every processor
WRITE_FILE, TRUNCATE = 1 << 1, 1 << 14
CHANGES = WRITE_FILE | sum(1 << right for right in range(4, 13))  # removes and makes files and folders


def die_with_parent() -> None:
    """Lets the kernel kill this process when its parent ends, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_namespaces() -> bool:
    """Whether this process left its network, and its next child starts a PID namespace, which ends with that child.

    False where the kernel or a container forbids unprivileged user namespaces.
    """
    user, group = os.getuid(), os.getgid()
    if sys.platform != "linux" or ctypes.CDLL(None).unshare(NEW_USER | NEW_PID | NEW_NET | NEW_IPC):
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))  # counted within the namespace
    return True


def limit_resources(memory_mb: float) -> None:
    """Bounds the address space to `memory_mb` MB more than now, and the size of a file; no core is dumped."""
    used = 0
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    wanted = {
        resource.RLIMIT_AS: used + int(memory_mb * 1e6),
        resource.RLIMIT_FSIZE: SCRATCH_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in wanted.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(limit, (value, value))
        except (OSError, ValueError):  # macOS bounds no address space
            continue


def forbid_writing(scratch: str) -> bool:
    """Forbids, by Landlock, every change of files outside of `scratch`, TCP, and signals to other processes.

    False where the kernel has no Landlock.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    changes = CHANGES | (1 << 13 if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    # Bytes that an older kernel does not know must be left out: TCP from version 4 on, signals from version 6 on.
    handled = struct.pack("QQQ", changes, 0b11, 0b11)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = libc.syscall(CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    for path, rights in ((scratch, changes), (os.devnull, changes & (WRITE_FILE | TRUNCATE))):
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
        libc.syscall(ADD_RULE, rules, 1, struct.pack("=Qi", rights, target), 0)
        os.close(target)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    forbidden: bool = libc.syscall(RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return forbidden
