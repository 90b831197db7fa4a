"""The part with all rights: `hand_over.py SOCKET MNT` mounts MNT for whoever connects to SOCKET, sends the open
/dev/fuse, and takes the mount away when that process has ended. One at a time; each gets a mount of its own.

Needs Python alone. Knows nothing of what is served.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import struct
import sys

RDONLY, NOSUID, NODEV, DETACH = 1, 2, 4, 2

libc = ctypes.CDLL(None, use_errno=True)


def mount(path: str, uid: int, gid: int) -> int:
    """Mount, read-only; the descriptor by which it is served."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id={uid},group_id={gid},allow_other,default_permissions"
    if libc.mount(b"shardfs", os.fsencode(path), b"fuse.shardfs", RDONLY | NOSUID | NODEV, options.encode()):
        code = ctypes.get_errno()
        os.close(device)
        raise OSError(code, os.strerror(code), path)
    return device


def serve(end: socket.socket, path: str) -> None:
    """Mount for one process, and unmount at its end, which its end of the socket tells."""
    _, uid, gid = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    device = mount(path, uid, gid)
    try:
        socket.send_fds(end, [b"."], [device])
    finally:
        # or readers would wait for ever when that process dies, in place of getting an error
        os.close(device)
    try:
        end.recv(1)
    finally:
        libc.umount2(os.fsencode(path), DETACH)


def main() -> None:
    address, path = sys.argv[1:3]
    os.makedirs(path, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        os.chmod(address, 0o666)
        listening.listen(1)
        while True:
            end, _ = listening.accept()
            with end:
                try:
                    serve(end, path)
                except OSError as error:
                    print(f"hand_over: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
