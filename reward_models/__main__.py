"""python -m reward_models"""

from reward_models.cli import main

raise SystemExit(main())
