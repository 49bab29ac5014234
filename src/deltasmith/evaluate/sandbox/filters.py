"""The system-call filter of a generated program: a denylist in classic BPF. Applying it is `kernel.py`'s."""

from __future__ import annotations

TYPE_CHECKING = False  # as mypy reads it; importing typing takes longer than starting the interpreter
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ARCHITECTURES", "NUMBERS", "seccomp_filter"]

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""uname's machine -> (column of NUMBERS, AUDIT_ARCH of linux/audit.h)."""

# Name -> number on (x86_64, aarch64), from the kernel's unistd tables; None where the call does not exist.
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # Other programs: none is started, traced or signalled.
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "get_robust_list": (274, 100),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # Sockets, and System V and POSIX objects, which outlive the program that made them.
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # Files by path or descriptor that Landlock does not govern: owner, mode, times, attributes, length.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "utimensat": (280, 88),
    "futimesat": (261, None),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "truncate": (76, 45),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "sync": (162, 81),
    "syncfs": (306, 267),
    "memfd_create": (319, 279),
    # Identity, namespaces, mounts.
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "capset": (126, 91),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "personality": (135, 92),
    # The machine, and parts of the kernel that a solution has no use for.
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "create_module": (174, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "uselib": (134, None),
    "_sysctl": (156, None),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "seccomp": (317, 277),
    # Not denied as such: each has its own rule in `_exceptions`.
    "clone": (56, 220),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "socketpair": (53, 199),
    "prctl": (157, 167),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "prlimit64": (302, 261),
}

# From 424 on a number means the same call on every machine. Of these, programs may use close_range, openat2,
# faccessat2, epoll_pwait2, futex_waitv, cachestat, map_shadow_stack and futex_{wake,wait,requeue}. All others, and
# those that future kernels add, do not exist for them; glibc falls back from clone3 (435) to clone, which is ruled.
SHARED_FROM = 424
SHARED_ALLOWED = (436, 437, 439, 441, 449, 451, 453, 454, 455, 456)

EPERM, ENOTTY, ENOSYS = 1, 25, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, AT_LEAST, ANY_BIT, MASK, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
X32 = 0x40000000  # x86_64 kernels take the numbers of the x32 ABI with this bit

CLONE_THREAD = 0x00010000
AF_UNIX, SOCK_STREAM, SOCK_TYPE_MASK = 1, 1, 0xF
# F_SETOWN, F_SETSIG and F_SETOWN_EX send signals; F_SETLEASE, F_NOTIFY watch; F_SETPIPE_SZ takes kernel memory.
FCNTL_DENIED = (8, 10, 15, 1024, 1026, 1031)
# PDEATHSIG, DUMPABLE, KEEPCAPS, SECUREBITS, perf off/on, MM, CHILD_SUBREAPER, CAP_AMBIENT, SCHED_CORE, PTRACER.
PRCTL_DENIED = (1, 4, 8, 28, 31, 32, 35, 36, 47, 62, 0x59616D61)
# TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: what isatty and asyncio ask.
IOCTL_ALLOWED = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)

Instruction = tuple[int, int, int, int]


def seccomp_filter(machine: str, pid: int) -> bytes:
    """Assemble the filter for `machine` ("x86_64" or "aarch64"), under which process `pid` may signal only itself.

    Refused calls fail with EPERM, calls unknown to this table with ENOSYS; a foreign ABI kills the process.
    """
    column, architecture = ARCHITECTURES[machine]
    exceptions = _exceptions(pid)
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, KILL),
        (AT_LEAST, 0, len(SHARED_ALLOWED) * 2 + 1, SHARED_FROM),
    ]
    for number in SHARED_ALLOWED:
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    code.append((RETURN, 0, 0, ERRNO | ENOSYS))
    for name, numbers in NUMBERS.items():
        number_here = numbers[column]
        if number_here is not None:
            rule = exceptions.get(name, [(RETURN, 0, 0, ERRNO | EPERM)])
            code += [(EQUAL, 0, len(rule), number_here), *rule]
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(
        operation.to_bytes(2, "little") + bytes((true, false)) + value.to_bytes(4, "little")
        for operation, true, false, value in code
    )


def _exceptions(pid: int) -> dict[str, list[Instruction]]:
    """Return the calls that are judged by an argument, each rule ending in a return."""
    myself = _among(0, (pid,), ALLOW, ERRNO | EPERM)
    return {
        "clone": [
            (LOAD, 0, 0, ARGUMENTS),
            (ANY_BIT, 0, 1, CLONE_THREAD),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, ERRNO | EPERM),
        ],
        "kill": myself,
        "tkill": myself,
        "tgkill": myself,
        # A connected pair of streams reaches nobody else; datagrams could be sent to any socket by its path.
        "socketpair": [
            (LOAD, 0, 0, ARGUMENTS),
            (EQUAL, 0, 4, AF_UNIX),
            (LOAD, 0, 0, ARGUMENTS + 8),
            (MASK, 0, 0, SOCK_TYPE_MASK),
            (EQUAL, 0, 1, SOCK_STREAM),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, ERRNO | EPERM),
        ],
        "prctl": _among(0, PRCTL_DENIED, ERRNO | EPERM, ALLOW),
        "fcntl": _among(1, FCNTL_DENIED, ERRNO | EPERM, ALLOW),
        "ioctl": _among(1, IOCTL_ALLOWED, ALLOW, ERRNO | ENOTTY),
        "prlimit64": _among(0, (0,), ALLOW, ERRNO | EPERM),
    }


def _among(argument: int, values: Sequence[int], inside: int, outside: int) -> list[Instruction]:
    """Return `inside` where the low half of an argument is one of `values`, else `outside`.

    The kernel reads these arguments as 32-bit numbers, so the upper half means nothing.
    """
    code: list[Instruction] = [(LOAD, 0, 0, ARGUMENTS + 8 * argument)]
    for value in values:
        code += [(EQUAL, 0, 1, value), (RETURN, 0, 0, inside)]
    return [*code, (RETURN, 0, 0, outside)]
