#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for rdist 6.1.5, which Debian 12 no longer has: NOT the real program.

It was written after rdist(1) and what the real 6.1.5 was seen to do: how it reads names (its quote mark is the byte
0xA0, a quoted wildcard is dropped), at most 2047 names, ``except`` by name and ``except_pat`` through regcomp(3) of
this system's own C library in the C locale, the lines it prints, and exit status 0 after a REMOTE ERROR, a name with
a newline and a host in no entry. It shares no line with infocluster. Where the real one talks to rdistd, this one
asks the transport program for a greeting and then works on a directory below RDIST_STANDIN_ROOT named like the host.

There, a file ``.full`` makes every write fail as on a full disk, and ``.cut`` breaks the connection at the first
file.
"""

import ctypes
import errno
import getopt
import os
import shutil
import stat
import subprocess
import sys

QUOTE = 0xA0
ENDS = b" \"'\t()=;:\n"
LIBC = ctypes.CDLL(None)


class Regex:
    def __init__(self, pattern):
        self.buffer = ctypes.create_string_buffer(512)
        if LIBC.regcomp(self.buffer, ctypes.c_char_p(pattern), 8):
            fail(f"bad regular expression {pattern!r}")

    def found_in(self, path):
        return LIBC.regexec(self.buffer, ctypes.c_char_p(path), 0, None, 0) == 0


class State:
    host = ""
    server = ""
    root = b""
    errors = 0
    line = 1
    variables = None
    constants = None


def say(text):
    text = os.fsencode(text) if isinstance(text, str) else text
    host = os.fsencode(State.host or "master")
    sys.stdout.buffer.write((text if text.startswith(host) else host + b": " + text) + b"\n")
    sys.stdout.flush()


def error(text):
    State.errors += 1
    say(b"LOCAL ERROR: " + (os.fsencode(text) if isinstance(text, str) else text))


def remote(text):
    say(os.fsencode(State.server) + b": " + text)


def remote_error(text):
    remote(b"REMOTE ERROR: " + text)


def fail(text):
    error(f"Error in distfile: line {State.line}: {text}")
    sys.exit(1)


def tokens(text):
    place, depth = 0, 0
    while place < len(text):
        first = text[place : place + 1]
        if first == b"#":
            while place < len(text) and text[place : place + 1] != b"\n":
                place += 1
            continue
        if first in (b" ", b"\t", b"\n"):
            State.line += first == b"\n"
            place += 1
        elif text[place : place + 2] in (b"->", b"::"):
            yield text[place : place + 2].decode(), b""
            place += 2
        elif first in (b"=", b";", b"+", b"&", b"(", b")", b":"):
            depth += (first == b"(") - (first == b")")
            yield first.decode(), b""
            place += 1
        elif first == b'"':
            end, word = place + 1, b""
            while text[end : end + 1] != b'"':
                if end >= len(text):
                    fail("missing closing quote")
                end += text[end : end + 1] == b"\\"
                word += text[end : end + 1].replace(b"\n", b" ")
                end += 1
            place = end + 1
            yield "STRING", word
        else:
            word, start = bytearray(), place
            while place == start or (place < len(text) and text[place] not in ENDS):
                if text[place] == 0x5C:
                    place += 1
                    if text[place] in b"[]{}*?$":
                        word.append(QUOTE)
                word.append(text[place])
                place += 1
                if len(word) >= 3500:
                    fail("input line too long")
            word = bytes(word)
            if word == b"-":
                yield "-", b""
            elif word[:1] == b"-" and depth <= 0:
                yield "OPTION", word
            elif word in (b"install", b"notify", b"except", b"except_pat", b"special", b"cmdspecial"):
                yield word.decode(), b""
            else:
                yield "NAME", word
    yield "END", b""


def unquoted(word):
    """Without the quote marks, as names are stored in the end."""
    return word.replace(bytes([QUOTE]), b"")


def with_variables(word):
    kept, place = bytearray(), 0
    while place < len(word):
        if word[place] == QUOTE and word[place + 1 : place + 2] != b"$":
            place += 2
            continue
        kept.append(word[place])
        place += 1
    word = bytes(kept)
    spot = word.find(b"$")
    if spot < 0 or (spot > 0 and word[spot - 1] == QUOTE):
        if word:
            yield word
        return
    rest = word[spot + 1 :]
    name, tail = (rest[1:].split(b"}", 1)) if rest[:1] == b"{" else (rest[:1], rest[1:])
    if name not in State.variables:
        fail(f"{name.decode()} undefined")
    for value in State.variables[name] or [b""]:
        yield from with_variables(word[:spot] + value + tail)


def globbed(word):
    """One directory level after the other; a class is one of its characters; nothing found leaves the word."""
    if not any(character in word for character in (b"[", b"*", b"?", b"{")):
        return [unquoted(word)]
    if QUOTE in word:
        return [unquoted(word)]
    found = [b""]
    for part in word.split(b"/")[1:]:
        if any(character in part for character in (b"[", b"*", b"?")):
            step = []
            for base in found:
                if not os.path.isdir(base or b"/"):
                    fail(f"{os.fsdecode(base)}: No such file or directory")
                step += [base + b"/" + name for name in sorted(os.listdir(base or b"/")) if matches(name, part)]
            found = step
        else:
            found = [base + b"/" + part for base in found]
    return [path for path in found if os.path.lexists(path)] or [word]


def matches(name, pattern):
    if name[:1] == b"." and pattern[:1] != b".":
        return False
    if not pattern:
        return not name
    if pattern[:1] == b"*":
        return any(matches_rest(name[spot:], pattern[1:]) for spot in range(len(name) + 1))
    return matches_rest(name, pattern)


def matches_rest(name, pattern):
    if not pattern:
        return not name
    if pattern[:1] == b"*":
        return any(matches_rest(name[spot:], pattern[1:]) for spot in range(len(name) + 1))
    if pattern[:1] == b"[":
        end = pattern.index(b"]")
        return bool(name) and name[0] in pattern[1:end] and matches_rest(name[1:], pattern[end + 1 :])
    if pattern[:1] == b"?":
        return bool(name) and matches_rest(name[1:], pattern[1:])
    return name[:1] == pattern[:1] and matches_rest(name[1:], pattern[1:])


def expand(words, wild):
    result = []
    for word in words:
        for each in with_variables(word):
            result += globbed(each) if wild else [unquoted(each)]
    if len(result) > 2047:
        fail("Too many names")
    return result


class Parser:
    def __init__(self, text):
        self.tokens = tokens(text)
        self.entries = []
        self.next()

    def next(self):
        before = getattr(self, "token", None)
        self.token = next(self.tokens)
        return before

    def take(self, kind):
        if self.token[0] != kind:
            fail(f"syntax error at {self.token}")
        return self.next()[1]

    def simple(self):
        if self.token[0] == "NAME":
            return [self.next()[1]]
        self.take("(")
        names = []
        while self.token[0] == "NAME":
            names.append(self.next()[1])
        self.take(")")
        return names

    def parse(self):
        while self.token[0] != "END":
            label = b""
            if self.token[0] == "NAME":
                name = self.next()[1]
                if self.token[0] == "=":
                    self.next()
                    value = self.simple()
                    if name not in State.constants:
                        State.variables[name] = value
                    continue
                if self.token[0] == ":":
                    self.next()
                    label, sources = name, self.simple()
                else:
                    sources = [name]
            else:
                sources = self.simple()
            self.take("->")
            hosts = expand(self.simple(), False)
            sources = expand(sources, True)
            self.entries.append((label, sources, hosts, list(self.commands())))
        return self.entries

    def commands(self):
        while self.token[0] in ("install", "notify", "except", "except_pat", "special", "cmdspecial"):
            kind = self.next()[0]
            if kind == "install":
                options = set()
                while self.token[0] == "OPTION":
                    options |= {os.fsdecode(word) for word in self.next()[1][2:].split(b",")}
                known = (
                    "chknfs chkreadonly chksym compare nochkgroup nochkmode nochkowner remove quiet sparse ignlnks"
                )
                if options - set(known.split()):
                    fail(f"Bad distfile options {options}")
                names = expand(self.simple(), False) if self.token[0] in ("NAME", "(") else []
                if len(names) > 1:
                    fail("only one name allowed")
                yield kind, options, names[0] if names else None
            elif kind in ("special", "cmdspecial"):
                names = expand(self.simple(), True) if self.token[0] in ("NAME", "(") else None
                yield kind, names, self.take("STRING")
            elif kind == "except_pat":
                names = expand(self.simple(), False)
                yield kind, [Regex(name) for name in names], None
            else:
                yield kind, expand(self.simple(), kind == "except"), None
            self.take(";")


class Update:
    """One entry for one host."""

    def __init__(self, commands, verify):
        self.verify = verify
        self.names = {name for kind, names, _ in commands if kind == "except" for name in names}
        self.patterns = [regex for kind, names, _ in commands if kind == "except_pat" for regex in names]

    def excepted(self, path):
        return path in self.names or any(regex.found_in(path) for regex in self.patterns)

    def there(self, path):
        return State.root + path

    def send(self, source, target, remove):
        if b"\n" in os.path.basename(source):
            say(b"Refuse to handle filename containing newline: " + source.replace(b"\n", b"?"))
            return
        if self.excepted(source):
            return
        try:
            status = os.lstat(source)
        except OSError as problem:
            error(source + b": lstat failed: " + os.strerror(problem.errno).encode())
            return
        try:
            old = os.lstat(self.there(target))
        except FileNotFoundError:
            old = None
        if old is None:
            if self.verify:
                say(source + b": need to install")
                return
            say(source + b": installing")
            remove = False
        if stat.S_ISDIR(status.st_mode):
            self.directory(source, target, status, old, remove)
        elif stat.S_ISLNK(status.st_mode):
            text = os.readlink(source)
            if old is not None and stat.S_ISLNK(old.st_mode) and os.readlink(self.there(target)) == text:
                return
            if self.verify:
                remote(target + b": need to update")
                return
            if self.parents(target):
                self.put(target, lambda new: os.symlink(text, new), old)
                remote(target + b": updated")
        elif stat.S_ISREG(status.st_mode):
            same = old is not None and stat.S_ISREG(old.st_mode)
            if same and [int(old.st_mtime), old.st_size, old.st_mode & 0o7777] == [
                int(status.st_mtime),
                status.st_size,
                status.st_mode & 0o7777,
            ]:
                return
            if old is not None:
                if self.verify:
                    say(source + b": need to update")
                    return
                say(source + b": updating")
            if os.path.exists(State.root + b"/.cut"):
                error(f"Lost connection to {State.host}")
                sys.exit(1)
            directory = os.path.dirname(target)
            if os.path.exists(State.root + b"/.full"):
                remote_error(directory + b"/rdista04711: create failed: " + os.strerror(errno.ENOSPC).encode())
                return
            if self.parents(target):
                self.put(target, lambda new: shutil.copy2(source, new), old)
        else:
            error(source + b": unknown file type")

    def put(self, target, make, old):
        new = os.path.dirname(self.there(target)) + b"/rdista04711"
        make(new)
        if old is not None and stat.S_ISDIR(old.st_mode):
            shutil.rmtree(self.there(target))
        os.rename(new, self.there(target))

    def parents(self, target):
        directory = os.path.dirname(target)
        if not os.path.lexists(self.there(directory)):
            self.parents(directory)
            os.mkdir(self.there(directory))
            remote(directory + b": mkdir")
        return True

    def directory(self, source, target, status, old, remove):
        there = self.there(target)
        if old is not None and not stat.S_ISDIR(old.st_mode):
            if self.verify:
                remote(target + b": need to remove")
                return
            os.unlink(there)
            old = None
        if old is None:
            self.parents(target)
            os.mkdir(there)
            os.chmod(there, status.st_mode & 0o7777)
            remote(target + b": mkdir")
        elif old.st_mode & 0o7777 != status.st_mode & 0o7777:
            modes = f": chmod from {old.st_mode & 0o7777:o} to {status.st_mode & 0o7777:o}".encode()
            if not self.verify:
                os.chmod(there, status.st_mode & 0o7777)
            remote(target + modes)
        if remove:
            for name in sorted(os.listdir(there)):
                if self.excepted(source + b"/" + name) or os.path.lexists(source + b"/" + name):
                    continue
                if self.verify:
                    remote(target + b"/" + name + b": need to remove")
                else:
                    self.remove(target + b"/" + name)
        for name in os.listdir(source):
            self.send(source + b"/" + name, target + b"/" + name, remove)

    def remove(self, target):
        there = self.there(target)
        if os.path.isdir(there) and not os.path.islink(there):
            for name in sorted(os.listdir(there)):
                self.remove(target + b"/" + name)
            os.rmdir(there)
        else:
            os.unlink(there)
        remote(target + b": removed")


def connect(transport, host):
    user, at, name = host.rpartition("@")
    words = [transport, name, "-l", user if at else os.environ.get("USER", "root"), "rdistd -S"]
    say(f"updating host {name}")
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=1, check=False)
    if not done.stdout.startswith(b"V"):
        sys.stdout.buffer.write(done.stdout)
        error("No input from server.")
        return False
    return True


def main():
    LIBC.setlocale(6, b"C")
    State.variables, State.constants = {}, set()
    options, labels = getopt.getopt(sys.argv[1:], "f:d:P:t:o:")
    given = dict(options)
    for option, value in options:
        if option == "-d":
            name, _, value = value.partition("=")
            State.constants.add(os.fsencode(name))
            State.variables[os.fsencode(name)] = [os.fsencode(word) for word in value.strip("()").split()]
    with open(given["-f"], "rb") as stream:
        entries = Parser(stream.read()).parse()
    for label in labels:
        if os.fsencode(label) not in {entry[0] for entry in entries}:
            error(f'Label "{label}" is not defined in the distfile.')
    if State.errors:
        sys.exit(1)
    hosts = {os.fsdecode(host): None for entry in entries for host in entry[2]}
    for host in hosts:
        State.host = host
        State.server = "s-" + host.rpartition("@")[2]
        State.root = os.fsencode(os.environ["RDIST_STANDIN_ROOT"] + "/" + host.rpartition("@")[2])
        if connect(given["-P"], host):
            for label, sources, targets, commands in entries:
                if os.fsencode(host) not in targets or (labels and os.fsdecode(label) not in labels):
                    continue
                update = Update(commands, given.get("-o") == "verify")
                for _, flags, destination in [command for command in commands if command[0] == "install"]:
                    for source in sources:
                        target = destination or source
                        if destination and len(sources) > 1:
                            target = destination + b"/" + os.path.basename(source)
                        update.send(source, target, "remove" in flags)
        say(f"updating of {host} finished")
    sys.exit(State.errors != 0)


if __name__ == "__main__":
    main()
