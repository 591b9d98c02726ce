# SPDX-License-Identifier: Apache-2.0
"""All benchmarks, or those that are named: make bench [WHAT="startup night"].

Each prints ratios of things measured in the same run: this machine's own speed is in none of them.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAMS = ("startup", "poll", "append", "queues", "night", "dask", "push", "install", "forms", "reports", "growth")


def main() -> int:
    wanted = sys.argv[1:] or PROGRAMS
    tree = Path(os.environ.get("BENCH_TREE", ROOT / "build/bench"))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/lib:{ROOT}/tests"}
    status = 0
    for name in wanted:
        if name not in PROGRAMS:
            print(f"bench: no benchmark is called {name}; there are {', '.join(PROGRAMS)}", file=sys.stderr)
            return 64
        print(f"== {name}", flush=True)
        command = [sys.executable, str(HERE / f"{name}.py"), str(tree)]
        status |= subprocess.run(command, env=environment, check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
