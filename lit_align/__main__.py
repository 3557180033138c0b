"""`python -m lit_align fit|validate|test|predict|export --config NAME`, the commands of `tools/`, and what needs no
torch: `--help`, `list`."""

import sys

from lit_align.overview import answer
from lit_align.quiet import quiet

if __name__ == "__main__" and not answer(sys.argv[1:]):
    quiet()
    from lit_align.cli import main

    main()
