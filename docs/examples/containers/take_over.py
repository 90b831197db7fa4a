"""The part without any rights: `take_over.py SOCKET COMMAND...` becomes COMMAND with `/dev/fd/N` as its last word,
where N is the open /dev/fuse that `hand_over.py` sends. The socket stays open as long as that runs.
"""

from __future__ import annotations

import os
import socket
import sys
import time


def main() -> None:
    address, command = sys.argv[1], sys.argv[2:]
    end = socket.socket(socket.AF_UNIX)
    while True:
        try:
            end.connect(address)
            break
        except (FileNotFoundError, ConnectionRefusedError):  # the other part is not there yet
            time.sleep(0.2)
    _, received, _, _ = socket.recv_fds(end, 1, 1)
    if not received:
        sys.exit("take_over: nothing was mounted; the other part says why")
    for number in (received[0], end.fileno()):
        os.set_inheritable(number, True)
    os.execvp(command[0], [*command, f"/dev/fd/{received[0]}"])


if __name__ == "__main__":
    main()
