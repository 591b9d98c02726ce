# SPDX-License-Identifier: Apache-2.0
"""A session through an ssh connection that is open already, without a client program of its own.

Each ssh(1) that goes through a shared connection loads and sets up all that a new one would need, only to hand its
standard streams to the process that holds the connection. This hands over three pipes instead. It is for what can be
done without: whoever gets None here, or an early end, asks ssh itself.

Shape: packets, each a length and that many bytes; integers big-endian with 32 bits, texts led by their length::

    hello        1, version 4                                          both ways, first
    new session  0x10000002, request, "", 0, 0, 0, 0, 0xffffffff, "", command
                 and three single bytes, each with a descriptor: input, output, errors
    opened       0x80000006, request, session
    exit         0x80000004, session, exit status                      the end of the socket follows

Source: PROTOCOL.mux of OpenSSH; unix(7), SCM_RIGHTS.
"""

import os
import select
import socket
import struct
import time

from infocluster.processes import Peer

HELLO, NEW_SESSION, EXIT = 1, 0x10000002, 0x80000004
VERSION = 4
NO_ESCAPE = 0xFFFFFFFF
# The status of a session that ended with its connection.
LOST = -1
PACKET_LIMIT_BYTES = 1 << 16
# Seconds for the process that holds the connection to take a request; it does nothing else.
TAKE_S = 5.0


class Session(Peer):
    """One command on the other side of a connection; the three descriptors are our ends of its pipes."""

    __slots__ = ("_control", "_unread")

    def __init__(self, control: socket.socket, streams: tuple[int, int, int]) -> None:
        super().__init__(*streams)
        self._control = control
        self._unread = b""

    def wait(self, timeout_s: float) -> int | None:
        """Return the command's exit status, LOST where the connection ended before it; None: not in time."""
        end = time.monotonic() + timeout_s
        while True:
            packet = self._packet()
            if packet is not None and len(packet) == 12 and packet[:4] == struct.pack(">I", EXIT):
                return int.from_bytes(packet[8:12], "big")
            if packet is not None:
                continue
            if not select.select([self._control], [], [], max(end - time.monotonic(), 0))[0]:
                return None
            try:
                chunk = self._control.recv(PACKET_LIMIT_BYTES)
            except OSError:
                chunk = b""
            self._unread += chunk
            if not chunk or len(self._unread) > PACKET_LIMIT_BYTES:
                return LOST

    def kill(self) -> None:
        """Give the session up: the command loses its streams."""
        self._control.close()

    def close(self) -> None:
        """Leave it as it is."""
        self._control.close()

    def _packet(self) -> bytes | None:
        size = int.from_bytes(self._unread[:4], "big")
        if len(self._unread) < 4 + size or not self._unread:
            return None
        packet, self._unread = self._unread[4 : 4 + size], self._unread[4 + size :]
        return packet


def session(file: str, command: str) -> Session | None:
    """Start a command through the socket of an open connection.

    Args:
        file: the socket, as ssh's ControlPath names it.
        command: what the login shell over there runs.

    Returns:
        None where there is no connection, or it does not take the request.
    """
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    pipes: list[tuple[int, int]] = []
    try:
        control.settimeout(TAKE_S)
        control.connect(file)
        control.sendall(_packed(_numbers(HELLO, VERSION)))
        pipes += [os.pipe(), os.pipe(), os.pipe()]
        (theirs_in, ours_in), (ours_out, theirs_out), (ours_errors, theirs_errors) = pipes
        request = [_numbers(NEW_SESSION, 0), _text(b""), _numbers(0, 0, 0, 0, NO_ESCAPE), _text(b"")]
        control.sendall(_packed(b"".join(request) + _text(os.fsencode(command))))
        for theirs in (theirs_in, theirs_out, theirs_errors):
            socket.send_fds(control, [b"\0"], [theirs])
        for theirs in (theirs_in, theirs_out, theirs_errors):
            os.close(theirs)
        return Session(control, (ours_in, ours_out, ours_errors))
    except OSError:
        for fd in [fd for pipe in pipes for fd in pipe]:
            os.close(fd)
        control.close()
        return None


def _numbers(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def _text(content: bytes) -> bytes:
    return _numbers(len(content)) + content


def _packed(content: bytes) -> bytes:
    return _numbers(len(content)) + content
