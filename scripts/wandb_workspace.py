"""A saved W&B workspace and a report for runs of rlef: the reward and its guards, the reward models, the tables, the evaluation.

    pip install 'rlef[workspaces]'
    python scripts/wandb_workspace.py ENTITY PROJECT [--group RUN] [--dry-run]

Needs WANDB_API_KEY; with --dry-run it prints what it would save, and needs neither key nor network. `--group`: of one run directory alone
(its name; default: all of the project). Prints the addresses of both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

# Section -> charts; a chart's lines share their axes. All are drawn over the stage's own step.
CHARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "The reward": (
        ("reward/total",),
        ("reward/answer", "reward/instruction"),
        ("monitor/exact_match", "reward/answer"),
        ("rollout/length",),
    ),
    "Is it gamed?": (
        ("monitor/reward_gap",),
        ("rollout/steps",),
        ("rollout/repeated_steps", "rollout/looping"),
        ("rollout/steps_after_answer", "rollout/no_answer", "rollout/too_long"),
    ),
    "Is it stable?": (("ppo/kl",), ("ppo/entropy",), ("optim/skipped_steps",), ("value/explained_variance",), ("rollout/logprob_gap",)),
    "Training": (("sft/loss", "sft/eval_loss"), ("irm/loss", "prm/loss"), ("dpo/loss",), ("optim/lr",)),
    "Evolution": (("evolve/kept", "evolve/eliminated"), ("evolve/mean_depth",)),
    "Speed": (("perf/tokens_per_second",), ("time/rollout", "time/reward", "time/update")),
}
TABLES = ("rollouts", "disagreements", "evolved", "ranked", "pairs", "evaluation")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entity")
    parser.add_argument("project")
    parser.add_argument("--group", help="name of a run directory")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(words)
    try:
        made = workspace(options.entity, options.project, options.group), report(options.entity, options.project, options.group)
    except ImportError:
        print("error: wandb-workspaces is not installed\n  fix: pip install 'rlef[workspaces]'", file=sys.stderr)
        return 2
    for one in made:
        if options.dry_run:
            print(json.dumps(spec(one), indent=2))
        else:
            one.save()
            print(one.url)
    return 0


def workspace(entity: str, project: str, group: str | None) -> Any:
    """Sections of charts and tables; runs by group, each stage beside its like."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections = [ws.Section(name=name, panels=_charts(charts), is_open=name == "The reward") for name, charts in CHARTS.items()]
    tables: list[Any] = [wr.WeavePanelSummaryTable(table_name=name) for name in TABLES]
    filters = [ws.Metric("Group") == group] if group is not None else []
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"rlef: {group}" if group is not None else "rlef",
        sections=[*sections, ws.Section(name="Tables", panels=tables)],
        settings=ws.WorkspaceSettings(x_axis="global_step"),
        runset_settings=ws.RunsetSettings(filters=filters, groupby=[ws.Metric("Group"), ws.Metric("JobType")]),
        auto_generate_panels=False,
    )


def report(entity: str, project: str, group: str | None) -> Any:
    """The same in one page to be commented on."""
    import wandb_workspaces.reports.v2 as wr

    filters = f"Group == '{group}'" if group is not None else ""
    blocks: list[Any] = [wr.TableOfContents()]
    for name, charts in CHARTS.items():
        runs = wr.Runset(filters=filters, groupby=["Group", "JobType"])  # of the report's own project
        blocks += [wr.H1(name), wr.PanelGrid(runsets=[runs], panels=_charts(charts))]
    shown = [wr.WeavePanelSummaryTable(table_name=name) for name in TABLES]
    blocks += [wr.H1("Tables"), wr.PanelGrid(runsets=[wr.Runset(filters=filters)], panels=shown)]
    return wr.Report(entity=entity, project=project, title=f"rlef: {group or project}", blocks=blocks, width="fluid")


def _charts(charts: Sequence[Sequence[str]]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [wr.LinePlot(title=", ".join(names), x="global_step", y=list(names)) for names in charts]


def spec(made: Any) -> dict[str, Any]:
    """What W&B's servers would be sent."""
    return made._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


if __name__ == "__main__":
    raise SystemExit(main())
