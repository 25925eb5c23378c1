"""The simulated world's storage: file systems that several hosts may share, files with inodes, and the write lock that excludes across hosts.

A file is one object however many hosts see it, so "the same file" is a fact here and not a comparison of names. A file system without `locks`
lets anybody write: the kind of pool where only the handoff's order keeps a second writer out, and where its absence shows.
"""

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class SimFile:
    """One file, of that name on its file system. `holder_pid` has the write lock, 0: nobody; without locks on its file system it stays 0.

    `written`: what is in it, as the number of the last write to a volume anywhere; 0: nothing. Two files of equal numbers are equal.
    """

    name: str
    inode: int
    size_mib: int
    lockable: bool
    holder_pid: int = 0
    written: int = 0


@dataclass(slots=True, eq=False)
class SimFileSystem:
    """One file system of the world; `files` by path below its root ("volumes/<uid>.qcow2", "images/<name>.qcow2")."""

    fingerprint: str
    capacity_mib: int
    shared: bool = False
    locks: bool = True
    files: dict[str, SimFile] = field(default_factory=dict)
    last_inode: int = 1
    own_locks: set[str] = field(default_factory=set)
    """Nodes that have it mounted so that locks stay on the node (as NFS with `nolock`)."""
    keeps_dead_locks: bool = False
    """Whether the lock of a process that was killed stays for ever, as on a server that is not told."""
    removed: set[str] = field(default_factory=set)
    """Paths of files that were removed for good."""
    probes: dict[str, str] = field(default_factory=dict)
    """Who has a probe's file locked, by its id; "": nobody."""

    @property
    def used_mib(self) -> int:
        return sum(file.size_mib for file in self.files.values())

    @property
    def free_mib(self) -> int:
        return self.capacity_mib - self.used_mib

    def add_image(self, name: str, size_mib: int) -> None:
        """Put a base image there, as an administrator would."""
        self.create(f"images/{name}.qcow2", size_mib)

    def create(self, path: str, size_mib: int) -> SimFile:
        """A new file with an inode that was never used before; the caller has checked the room."""
        self.last_inode += 1
        file = self.files[path] = SimFile(path, self.last_inode, size_mib, self.locks)
        return file


def take_write_lock(files: tuple[SimFile, ...], pid: int) -> bool:
    """All of them or none; False: somebody else holds one. Files that cannot be locked do not count."""
    if any(file.holder_pid not in (0, pid) for file in files):
        return False
    for file in files:
        if file.lockable:
            file.holder_pid = pid
    return True


def drop_write_lock(files: tuple[SimFile, ...], pid: int) -> None:
    """Let go of those that this process holds."""
    for file in files:
        if file.holder_pid == pid:
            file.holder_pid = 0
