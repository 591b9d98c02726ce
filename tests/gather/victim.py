# SPDX-License-Identifier: Apache-2.0
"""Loaded by workers of which a test kills one in mid-run (dask worker --preload gather.victim).

The victim, when it has read VICTIM_AFTER slices, writes its process's id into the fifo VICTIM_FIFO, and waits for its
end. The bystander reads one slice and waits until somebody opens the fifo BYSTANDER_FIFO, so that the victim gets
what it is to have.
"""

import os
import signal
from collections.abc import Iterator

from infocluster.gather import slices
from infocluster.gather.collect import Part

_blocks = slices._blocks
_begun = 0


def _held(part: Part) -> Iterator[bytes]:
    global _begun
    _begun += 1
    if "VICTIM_FIFO" in os.environ and _begun > int(os.environ["VICTIM_AFTER"]):
        with open(os.environ["VICTIM_FIFO"], "w") as fifo:
            fifo.write(f"{os.getpid()}\n")
        signal.sigwait({signal.SIGRTMAX})
    if "BYSTANDER_FIFO" in os.environ and _begun == 2:
        with open(os.environ["BYSTANDER_FIFO"]) as fifo:
            fifo.read()
    return _blocks(part)


slices._blocks = _held
