"""python -m rlef"""

from rlef.cli import main

raise SystemExit(main())
