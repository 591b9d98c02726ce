# SPDX-License-Identifier: Apache-2.0
"""A job for tests of folding, in a module that workers of a cluster can import too."""

from collections import Counter


class LineCount:
    """Count lines by their text; an empty line is no record."""

    packages: tuple[str, ...] = ("msgspec",)

    def empty(self) -> Counter[bytes]:
        return Counter()

    def map(self, segment: str, block: bytes) -> tuple[Counter[bytes], int]:
        assert block.endswith(b"\n")
        lines = block.split(b"\n")[:-1]
        return Counter(line for line in lines if line), lines.count(b"")

    def merge(self, one: Counter[bytes], other: Counter[bytes]) -> Counter[bytes]:
        one.update(other)
        return one


class Faulty(LineCount):
    """A job with a fault of its own."""

    def map(self, segment: str, block: bytes) -> tuple[Counter[bytes], int]:
        raise ZeroDivisionError("a fault of the job")
