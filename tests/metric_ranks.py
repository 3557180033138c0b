"""What each of two ranks measures for tests/metrics/test_processes.py: `python -m metric_ranks FOLDER`."""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from metric_parts import CASES, measure


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    found = {}
    for name, (make, updates) in CASES.items():
        metric, share = make(folder / str(rank)), len(updates) // 3 + 1
        parts = {"uneven": (updates[share:], updates[:share]), "one": (updates, [])}
        for how, part in parts.items():
            metric.reset()
            if not part[rank]:
                getattr(metric, "read", lambda: None)()  # takes its part of the reference
            found[f"{name} {how}"] = measure(metric, part[rank])
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # gloo's threads do not always survive the interpreter's own way out
