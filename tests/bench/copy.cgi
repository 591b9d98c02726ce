#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
# The least that taking an upload can cost: read the body, write it, fsync, answer.
import posix

length = int(posix.environ[b"CONTENT_LENGTH"])
path = posix.environ[b"SERVER_GATHER"] + b"/copied." + posix.urandom(6).hex().encode()
fd = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL, 0o644)
while length > 0:
    chunk = posix.read(0, 65536)
    length -= len(chunk)
    posix.write(fd, chunk)
posix.fsync(fd)
posix.write(1, b"Status: 303 See Other\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n")
posix._exit(0)
