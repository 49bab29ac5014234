"""The Linux calls that confine a process, through ctypes: namespaces, Landlock, seccomp. Used in the child only."""

from __future__ import annotations

import os

from deltasmith.evaluate.sandbox.filters import ARCHITECTURES, NUMBERS, seccomp_filter

TYPE_CHECKING = False  # as mypy reads it; importing typing takes longer than starting the interpreter
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Kernel"]

# linux/sched.h
NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
NEW_PIDS, NEW_NETWORK = 0x20000000, 0x40000000
# linux/mount.h
NOSUID, NODEV, BIND, RECURSIVE, PRIVATE, DETACH = 2, 4, 0x1000, 0x4000, 0x40000, 2
ATTRIBUTE_READ_ONLY, ATTRIBUTE_NOSUID, AT_FDCWD, AT_RECURSIVE, MOUNT_SETATTR = 1, 2, -100, 0x8000, 442
# linux/prctl.h, linux/seccomp.h, linux/capability.h
SET_DEATH_SIGNAL, SET_SUBREAPER, NO_NEW_PRIVILEGES = 1, 36, 38
SECCOMP_SET_FILTER, SECCOMP_TSYNC, CAPABILITY_VERSION_3 = 1, 1, 0x20080522
# linux/landlock.h
CREATE_RULESET, ADD_RULE, RESTRICT_SELF, PATH_BENEATH, QUERY_VERSION = 444, 445, 446, 1, 1
READ = 0x4 | 0x8  # files, folders
WRITE = 0x2 | 0x10 | 0x20 | 0x80 | 0x100 | 0x1000  # write, remove folder/file, make folder/file/link
REFER, TRUNCATE = 0x2000, 0x4000
ONLY_FILES = 0x2 | 0x4 | TRUNCATE


class Kernel:
    """Make raw system calls; every one that fails raises OSError naming it."""

    def __init__(self) -> None:
        """Load the C library. Raises OSError where this machine's call numbers are not known."""
        import ctypes

        self.machine = os.uname().machine
        if self.machine not in ARCHITECTURES:
            raise OSError(f"no system call numbers for {self.machine}")
        self._column = ARCHITECTURES[self.machine][0]
        self._ctypes = ctypes
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long

    def call(self, name: str | int, *arguments: int | bytes | str | None) -> int:
        """Make one system call, by name or number, and return its result."""
        number = name if isinstance(name, int) else NUMBERS[name][self._column]
        assert number is not None
        convert = self._ctypes.c_long
        values = [os.fsencode(a) if isinstance(a, str) else a for a in arguments]
        result = self._syscall(convert(number), *(convert(v) if isinstance(v, int) else v for v in values))
        if result < 0:
            code = self._ctypes.get_errno()
            about = " ".join([str(name), *(a for a in arguments if isinstance(a, str))])
            raise OSError(code, f"{about}: {os.strerror(code)}")
        return int(result)

    def _buffer(self, content: bytes) -> int:
        self._kept = self._ctypes.create_string_buffer(content, len(content))  # alive until the next one
        return self._ctypes.addressof(self._kept)

    def adopt_orphans(self) -> None:
        """Become the parent of every descendant whose own parent ends."""
        self.call("prctl", SET_SUBREAPER, 1, 0, 0, 0)

    def die_with_parent(self) -> None:
        """Be killed when the parent ends."""
        self.call("prctl", SET_DEATH_SIGNAL, 9, 0, 0, 0)

    def drop_capabilities(self) -> None:
        """Give up every capability, and for good: nothing run later can gain one."""
        header = CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4)
        self.call("capset", header, bytes(24))
        self.call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)

    def filter_calls(self) -> None:
        """Apply the system-call filter to this process and all its threads."""
        code = seccomp_filter(self.machine, os.getpid())
        address = self._buffer(code)
        program = (len(code) // 8).to_bytes(8, "little") + address.to_bytes(8, "little")
        self.call("seccomp", SECCOMP_SET_FILTER, SECCOMP_TSYNC, program)

    def landlock_version(self) -> int:
        """Return the kernel's Landlock ABI, 0 where it has none."""
        try:
            return self.call(CREATE_RULESET, None, 0, QUERY_VERSION)
        except OSError:
            return 0

    def restrict_files(self, readable: Sequence[str], devices: Sequence[str], folder: str) -> int:
        """Leave only `readable` to be read, `devices` to be read and written, and `folder` to be used.

        Return the Landlock ABI; without Landlock that is 0, and nothing changes. From ABI 4 on TCP is denied
        too, from 6 on signals and abstract sockets to the outside.
        """
        abi = self.landlock_version()
        if not abi:
            return 0
        files = (
            0x1FFF | (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0) | (0x8000 if abi >= 5 else 0)
        )
        attributes = b"".join(v.to_bytes(8, "little") for v in (files, 0b11, 0b11))
        size = 8 if abi < 4 else 16 if abi < 6 else 24
        rules = self.call(CREATE_RULESET, attributes, size, 0)
        work = (READ | WRITE | REFER | TRUNCATE) & files
        granted = [(p, READ) for p in readable] + [(p, 0x2 | 0x4) for p in devices] + [(folder, work)]
        for path, access in granted:
            self._grant(rules, path, access)
        self.call(RESTRICT_SELF, rules, 0)
        os.close(rules)
        return abi

    def _grant(self, rules: int, path: str, access: int) -> None:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):  # noqa: PTH112 (pathlib would be one more module to load per program)
            access &= ONLY_FILES
        rule = access.to_bytes(8, "little") + target.to_bytes(4, "little")
        self.call(ADD_RULE, rules, PATH_BENEATH, rule, 0)
        os.close(target)

    def enter_namespaces(self) -> None:
        """Leave the machine's processes, network, IPC, host name and mounts; the next child is process 1.

        A user without CAP_SYS_ADMIN does it in a user namespace of its own, where it is uid 65534.
        """
        wanted = NEW_MOUNTS | NEW_PIDS | NEW_NETWORK | NEW_IPC | NEW_UTS
        uid, gid = os.getuid(), os.getgid()
        try:
            self.call("unshare", wanted)
        except PermissionError:
            self.call("unshare", wanted | NEW_USER)
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"65534 {uid} 1"),
                ("gid_map", f"65534 {gid} 1"),
            ):
                target = os.open(f"/proc/self/{name}", os.O_WRONLY)
                os.write(target, text.encode())
                os.close(target)

    def change_root(
        self,
        root: str,
        readable: Sequence[str],
        links: Sequence[tuple[str, str]],
        devices: Sequence[str],
        folder: tuple[str, int],
    ) -> None:
        """Replace the root by one built at `root`, and go to its `folder` (path, bytes), which is in memory.

        The root holds nothing else but `readable`, read-only, `links` (path, target) and `devices`.
        """
        self.call("mount", "none", "/", None, RECURSIVE | PRIVATE, None)
        self.call("mount", "tmpfs", root, "tmpfs", NOSUID | NODEV, "size=1m,nr_inodes=4096,mode=755")
        for path in (*readable, *devices):
            _stand_in(path, root + path)
            self.call("mount", path, root + path, None, BIND | RECURSIVE, None)
            if path in readable:
                self._set_read_only(root + path, AT_RECURSIVE)
        for path, target in links:
            os.makedirs(os.path.dirname(root + path), exist_ok=True)  # noqa: PTH103, PTH120
            os.symlink(target, root + path)  # noqa: PTH211
        os.makedirs(root + folder[0])  # noqa: PTH103
        options = f"size={folder[1]},nr_inodes=512,mode=777"
        self.call("mount", "tmpfs", root + folder[0], "tmpfs", NOSUID | NODEV, options)
        os.chdir(root)
        self.call("pivot_root", ".", ".")
        self.call("umount2", ".", DETACH)
        self._set_read_only("/", 0)
        os.chdir(folder[0])

    def _set_read_only(self, path: str, flags: int) -> None:
        attributes = (ATTRIBUTE_READ_ONLY | ATTRIBUTE_NOSUID).to_bytes(8, "little") + bytes(24)
        self.call(MOUNT_SETATTR, AT_FDCWD, path, flags, attributes, len(attributes))


def _stand_in(source: str, place: str) -> None:
    """Make an empty folder or file for a mount to cover."""
    if os.path.isdir(source):  # noqa: PTH112
        os.makedirs(place, exist_ok=True)  # noqa: PTH103
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
