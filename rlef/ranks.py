"""torchrun (`python -m rlef.ranks` and its arguments) that ends with one code and no traceback where it or its ranks were told to stop."""

from __future__ import annotations

import logging
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from reward_models import stopping


def main(words: list[str]) -> int:
    logging.disable(logging.WARNING)  # which signal it passed on to whom
    try:
        run.main(words)
    except SignalException:
        return stopping.EXIT_CODE
    except ChildFailedError as error:
        if error.get_first_failure()[1].exitcode != stopping.EXIT_CODE:
            raise
        return stopping.EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
