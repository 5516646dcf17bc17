"""One self-contained page of a run, finished or not: it only reads the run directory, and every model text in it is escaped."""

from __future__ import annotations

import difflib
import html
import json
import math
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from reward_models.charts import line_chart
from reward_models.statistics import in_points
from rlef.charts import interval_chart
from rlef.errors import UserError
from rlef.load_config import read_yaml
from rlef.records import Eliminated, Problem, Rollout, read_jsonl
from rlef.run_dir import read_json
from rlef.stages.context import StageContext

STAGE_VERSION = 1
BY_ITERATION = ("ppo", "grpo")  # kinds that sample anew in each
PER_OPERATION, PER_RULE, ROLLOUTS = 2, 1, 12  # examples shown
LONGEST = 4000  # characters of a text that are shown
PAIRS = 50_000  # equal words of two texts, pair by pair, above which new words are not looked for: that takes pairs times blocks
SAME_TEXT = 0.4  # share of common words from which a rewrite is shown with its new words marked

TITLES = {
    "irm": "Instruction reward model: r_I, is this a good problem?",
    "prm": "Process reward model: r_A, is each step right?",
    "orm": "Outcome reward model: r_A, is the answer right?",
    "sft": "SFT: learning from solved examples",
    "ppo": "PPO: learning from the two rewards",
    "dpo": "DPO: learning from pairs ranked by the two rewards",
    "grpo": "GRPO: learning from the two rewards, answers against answers",
    "rft": "RFT: imitating the samples with the best rewards",
}
OPERATIONS = {
    "up.add_constraint": "one more condition",
    "up.concretise": "general words made specific",
    "up.add_step": "one more reasoning step",
    "up.deepen": "the same subject in more depth",
    "up.complicate_input": "a table, code or XML to read first",
    "up.add_requirement": "one more requirement",
    "up.rarer_requirement": "a rarer requirement",
    "up.misleading_code": "wrong code that misleads",
    "up.tighten_limits": "a limit on time or memory",
    "down.drop_step": "one reasoning step fewer",
    "down.smaller_numbers": "smaller numbers",
    "down.easier_revision": "an easier version",
    "down.easier_topic": "an easier problem on another topic",
    "breadth.new_topic": "a new problem on another topic",
}
RULES = {
    "no_information_gain": "says the same as its parent",
    "refusal": "the teacher refused",
    "stop_words": "nothing but filler words",
    "leaked_prompt": "repeats words of the rewriting prompt",
    "no_answer": "the teacher returned nothing usable",
    "exact_duplicate": "same text as an earlier problem",
    "near_duplicate": "almost the text of an earlier problem",
    "held_out_text": "shares text with a held-out test problem",
    "held_out_renamed": "a held-out test problem with other names",
    "held_out_renumbered": "a held-out test problem with other numbers",
    "held_out_neighbour": "near a held-out test problem for the embedding model",
    "no_question": "asks nothing",
    "cut_off": "cut off at the teacher's max_tokens",
    "held_out_shape": "same calculation as a held-out test problem",
    "outside_band": "too easy or too hard for the policy, and a parent all the same",
}
FLAWS = {
    "ambiguous_reference": "unclear who is meant",
    "contradiction": "two sentences contradict each other",
    "missing_quantity": "a number is missing",
    "no_question": "nothing is asked",
}
MEASURES = {
    "pair_accuracy": "pairs put in the judge's order; 0.5 is guessing, 1 is perfect",
    "cross_seed_accuracy": "the same for pairs from different seeds",
    "kendall_tau": "agreement on whole ranked lists, from -1 to 1",
    "length_correlation": "of score and text length; near 0: length alone earns nothing",
    "slope": "scale from raw scores to win rates",
    "step_auroc": "chance that a right step scores above a wrong one; 0.5 is guessing, 1 is perfect",
    "step_accuracy": "steps on the right side of 0.5",
    "balanced_accuracy": "the same, right and wrong steps weighing equally",
    "auprc_errors": "wrong steps found by low scores: precision averaged over recall",
    "ece": "calibration error: how far the scores are from true chances; 0 is best",
    "brier": "mean squared error of the scores as chances; 0 is best",
    "first_error_f1": "finds the first wrong step, or that there is none; 1 is perfect",
    "within_problem": "a right and a wrong answer to one problem put in order by r_A; 0.5 is guessing, 1 is perfect",
    "threshold": "a step below it counts as wrong in first_error_f1",
    "majority": "problems solved by the most frequent answer of the labelled samples",
    "weighted_vote": "the same, votes weighted by r_A",
    "best_of": "the same, taking the sample with the best r_A",
    "pairs": "pairs compared",
    "steps": "steps measured",
    "truncated": "answers too long to score",
    "train_lists": "ranked lists learned from",
    "held_out_lists": "ranked lists held out",
    "train_solutions": "solutions learned from",
    "held_out_solutions": "solutions held out",
    "right_steps": "share of right steps among those measured",
}

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#59636e;--line:#d5dbe1;--box:#f6f8fa;--mark:#d2f4da;--c1:#0969da;--c2:#bf3989;--c3:#1a7f37;--c4:#9a6700}
@media(prefers-color-scheme:dark){:root{--bg:#0d1117;--fg:#e6edf3;--dim:#9198a1;--line:#30363d;--box:#161b22;--mark:#12401f;--c1:#58a6ff;--c2:#f778ba;--c3:#56d364;--c4:#e3b341}}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:0 auto;padding:16px}
h1{font-size:26px;margin:8px 0;overflow-wrap:anywhere}h2{font-size:19px;margin:34px 0 8px;border-bottom:1px solid var(--line)}h3{font-size:15px;margin:18px 0 4px}
a{color:var(--c1)}nav{display:flex;flex-wrap:wrap;gap:2px 16px;margin:12px 0}p,li{max-width:80ch}li{margin:2px 0}ul{padding-left:20px}
table{border-collapse:collapse;display:block;overflow-x:auto;margin:8px 0}td,th{padding:4px 10px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--dim);font-weight:600;white-space:nowrap}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bars{display:table;width:100%}.bars td{vertical-align:middle;overflow-wrap:anywhere}.bars td:last-child{width:45%}.bars div{background:var(--c1);height:10px;border-radius:2px;min-width:1px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(320px,100%),1fr));gap:10px;margin:8px 0}svg{background:var(--box);border-radius:6px;width:100%}
svg text{fill:var(--fg);font:12px system-ui,sans-serif}svg .a{fill:var(--dim);font-size:11px}svg .g{stroke:var(--line)}
.card{background:var(--box);border-radius:6px;padding:8px 12px;margin:8px 0;overflow-wrap:anywhere;white-space:pre-line}.dim{color:var(--dim)}
mark{background:var(--mark);color:inherit;border-radius:3px;padding:0 2px}
.step{display:block;border-left:6px solid;padding-left:8px;margin:3px 0;white-space:pre-wrap;font-family:ui-monospace,monospace;font-size:13px}
@media(max-width:600px){td,th{padding:4px 6px}th,th.n{white-space:normal}.bars td:last-child{width:25%}}
"""


def run(ctx: StageContext) -> dict:
    """Writes report.html into the run directory."""
    page = write_report(ctx.folder.parent)
    return {"bytes": page.stat().st_size}


def write_report(run_dir: Path) -> Path:
    """Raises UserError where the folder holds no run, or one with a damaged file."""
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: no config.yaml there", fix="give a run directory, e.g. runs/quickstart")
    try:
        page = _page(run_dir)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error}, {Path(where.filename).name} line {where.lineno}"
        raise UserError(
            f"{run_dir}: no report: a file there is not as rlef writes it ({told:.300})", fix="make that stage again"
        ) from error
    target = run_dir / "report.html"
    partial = run_dir / "report.html.partial"
    partial.write_text(page, encoding="utf-8")
    partial.replace(target)
    return target


def _page(run_dir: Path) -> str:
    config = read_yaml(run_dir / "config.yaml", fix="run `rlef run` once more: it writes it anew")
    manifests = {name: _json(run_dir / name / "manifest.json") for name in config["stages"]}
    kinds = {name: stage["kind"] for name, stage in config["stages"].items()}
    metrics = _metrics(run_dir / "metrics.jsonl")
    results: dict[str, Any] = {}
    for name, kind in kinds.items():
        if kind == "evaluate":
            results |= _json(run_dir / name / "results.json")
    sections = [
        ("Policies compared", _comparison(results)),
        *(
            (_title("What evolved", name, kind), _evolution(run_dir / name, manifests[name], run_dir, kinds))
            for name, kind in kinds.items()
            if kind == "evolve"
        ),
        *(
            (_title(TITLES[kind], name, kind), _reward_model(kind, manifests[name], metrics[name]))
            for name, kind in kinds.items()
            if kind in ("irm", "prm", "orm")
        ),
        *(
            (_title(TITLES[kind], name, kind), _training(kind, manifests[name], metrics[name]))
            for name, kind in kinds.items()
            if kind in ("sft", "ppo", "dpo", "grpo", "rft")
        ),
        *(
            (_title(f"Sample answers at the end of {kind.upper()}", name, kind), _rollouts(run_dir, name, kinds))
            for name, kind in kinds.items()
            if kind in BY_ITERATION
        ),
        ("Stages", _timeline(run_dir, manifests, kinds)),
    ]
    sections = [(title, body) for title, body in sections if body]
    links = "".join(f"<a href='#s{place}'>{_e(title.split(':')[0])}</a>" for place, (title, _) in enumerate(sections))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>rlef: {_e(run_dir.resolve().name)}</title><style>{STYLE}</style><body>{_summary(run_dir, config, manifests, kinds, results, metrics)}"
        f"<nav>{links}</nav>{''.join(f'<h2 id=s{place}>{_e(title)}</h2>{body}' for place, (title, body) in enumerate(sections))}</body></html>"
    )


# --------------------------------------------------------------------------------------------- sections


def _summary(
    run_dir: Path,
    config: dict[str, Any],
    manifests: dict[str, Any],
    kinds: dict[str, str],
    results: dict[str, Any],
    metrics: dict[str, Any],
) -> str:
    done = sum(bool(manifest) for name, manifest in manifests.items() if kinds[name] != "report")
    total = sum(kind != "report" for kind in kinds.values())
    seconds = sum(manifest.get("seconds", 0) for manifest in manifests.values())
    sentences = [f"{done} of {total} stages are done, in {seconds / 60:.1f} minutes."]
    for name, kind in kinds.items():
        result = manifests[name].get("result", {})
        if kind == "method" and result:
            rates = (
                f"{result['failure_rate_before']:.0%} failed by the first method and {result['failure_rate_after']:.0%} by the one found"
            )
            sentences.append(f"Of evolutions that the search for a method had not seen, {rates}.")
        if kind == "evolve" and result:
            flawed = result.get("flawed")
            aside = f"; {flawed:.0%} of the kept ones are flawed, which only the symbolic teacher knows" if flawed else ""
            sentences.append(f"{result['made']} evolutions were made and {result['kept']} kept{aside}.")
        if kind == "irm" and result:
            sentences.append(
                f"The instruction reward model orders {_percent(result['pair_accuracy'])} of held-out pairs of problems as the judge does (50% is guessing)."
            )
        if kind == "prm" and result.get("step_auroc") is not None:
            sentences.append(
                f"The process reward model scores a right step above a wrong one in {_percent(result['step_auroc'])} of cases (its AUROC; 50% is guessing)."
            )
        rewards = metrics[name].get("reward/total", [])
        if kind in BY_ITERATION and rewards:
            state = "" if manifests[name] else ", not finished"
            sentences.append(
                f"{name}: {rewards[-1][0]:g} of {config['stages'][name].get('iterations', '?')} iterations{state}; mean reward {_number(rewards[0][1])} at the first, {_number(rewards[-1][1])} at the last."
            )
    for policy, row in results.items():
        if "gain" in row:
            low, high = row["gain"]["ci95"]
            sure = "above" if low > 0 else "below" if high < 0 else "not clearly different from"
            sentences.append(
                f"{policy} answers {row['pass@1']:.1%} of the held-out problems, {sure} {row['gain']['over']}: {_gain(row['gain'])} (95% interval)."
            )
    lead = (
        "A teacher rewrites seed problems into harder, easier and different ones. Two reward models learn from judged examples: r_I scores a problem, "
        "r_A the steps of an answer, where the worst step counts. The policy then learns to raise r_I × r_A"
    )
    known = any(stage.get("use_answers") for name, stage in config["stages"].items() if kinds[name] in ("ppo", "dpo", "grpo", "rft"))
    lead += ", with known answers as a check on r_A." if known else "; no known answer enters that reward."
    return f"<h1>{_e(run_dir.resolve().name)}</h1><p>{lead}</p><ul>{''.join(f'<li>{_e(sentence)}' for sentence in sentences)}</ul>"


def _comparison(results: dict[str, Any]) -> str:
    if not results:
        return "<p class=dim>Not evaluated yet: rerun the same command to continue.</p>"
    shares = sorted(
        {key for row in results.values() for key in row if "@" in key or key.startswith("best_of")} - {"pass@1", "sampled_pass@1"}
    )
    depths = sorted({depth for row in results.values() for depth in row.get("by_depth", {})}, key=int)
    over = next((row["gain"]["over"] for row in results.values() if "gain" in row), None)
    head = ["policy", "problems", "pass@1", "95% interval", *([f"minus {over} (95% interval)"] if over else []), *shares]
    rows = []
    for policy, row in results.items():
        low, high = row["ci95"]
        gain = [_gain(row["gain"]) if "gain" in row else "–"] if over else []
        rows.append(
            [policy, row["n"], _percent(row["pass@1"]), f"{low:.1%} to {high:.1%}", *gain, *(_percent(row.get(key)) for key in shares)]
        )
    parts = [
        "<p>Every policy answers the same held-out problems. An interval is where the true value lies with 95% confidence; "
        "a difference is sure where its interval does not hold 0.</p>",
        _charts(
            interval_chart("solved greedily (pass@1)", {policy: (row["pass@1"], *row["ci95"]) for policy, row in results.items()}),
            interval_chart(
                f"difference from {over}",
                {policy: (row["gain"]["mean"], *row["gain"]["ci95"]) for policy, row in results.items() if "gain" in row},
            ),
        ),
        _table(head, rows),
    ]
    voters = max((row.get("vote_n", 0) for row in results.values()), default=0)
    if voters:
        parts.append(
            f"<p class=dim>With k samples, on the first {voters} problems: pass@k, any is right; majority@k, the most frequent answer is; "
            "prm_vote@k, the same weighted by r_A; best_of_k, the sample with the best r_A is.</p>"
        )
    votes = [[policy, _gain(row["prm_vote_minus_majority"])] for policy, row in results.items() if "prm_vote_minus_majority" in row]
    if votes:
        parts.append(_table(["policy", "vote weighted by r_A minus majority (95% interval)"], votes))
    lost = [
        [policy, _percent(row["extraction_failures"]), *(_percent(row["by_depth"].get(depth)) for depth in depths)]
        for policy, row in results.items()
    ]
    parts.append("<h3>pass@1 by depth (reasoning steps), and answers that could not be read</h3>")
    return "".join(parts) + _table(["policy", "no answer", *(f"depth {depth}" for depth in depths)], lost)


def _evolution(folder: Path, manifest: dict[str, Any], run_dir: Path, kinds: dict[str, str]) -> str:
    if not manifest:
        return ""
    result = manifest["result"]
    evolved = _rows(folder / "evolved.jsonl", Problem)
    known = _problems(run_dir, kinds)
    shown: dict[str, list[str]] = defaultdict(list)
    flawed: dict[str, str] = {}
    for problem in evolved:
        if problem.lineage is None or problem.lineage.parent not in known:
            continue
        flaw = problem.truth.flaw if problem.truth else None
        if flaw:
            flawed.setdefault(flaw, f"<h3>{_named(flaw, FLAWS)}</h3>" + _rewrite(known[problem.lineage.parent], problem))
        elif len(shown[problem.lineage.operation]) < PER_OPERATION:
            shown[problem.lineage.operation].append(_rewrite(known[problem.lineage.parent], problem))
    rules: dict[str, list[str]] = defaultdict(list)
    for row in _rows(folder / "eliminated.jsonl", Eliminated):
        if len(rules[row.rule]) < PER_RULE:
            parent = known.get(row.problem.lineage.parent) if row.problem.lineage else None
            rules[row.rule].append(_rewrite(parent, row.problem))
    parts = [
        f"<p>{result['made']} made, {result['kept']} kept. New words are <mark>marked</mark>.</p>",
        _bars((OPERATIONS, name, count) for name, count in _most(result["operations"])),
        _line_of(evolved, known),
        _rounds(result.get("rounds", {})),
    ]
    parts += [f"<h3>{_named(operation, OPERATIONS)}</h3>{''.join(cards)}" for operation, cards in sorted(shown.items())]
    if flawed:
        parts.append("<h2>Flawed but kept</h2><p>The elimination rules cannot see these flaws; r_I has to learn to.</p>")
        parts += [flawed[flaw] for flaw in sorted(flawed)]
    parts.append("<h2>What was eliminated, and why</h2>" + _bars((RULES, rule, count) for rule, count in _most(result["eliminated"])))
    parts += [f"<h3>{_named(rule, RULES)}</h3>{''.join(cards)}" for rule, cards in sorted(rules.items())]
    return "".join(parts)


def _rounds(rounds: dict[str, dict[str, float]]) -> str:
    """How hard each round's children were for the policy; empty where nothing was measured."""
    rows = [[number, f"{one['pass_rate']:.2f}", _percent(one["in_band"])] for number, one in rounds.items() if one]
    note = "<p>The share of the policy's answers to a new problem that solve it, as far as its votes and the PRM can tell.</p>"
    return "<h3>By feedback: how hard each round was</h3>" + note + _table(["round", "pass rate", "within the band"], rows) if rows else ""


def _line_of(evolved: Sequence[Problem], known: dict[str, Problem]) -> str:
    """Of the longest lines from a seed, all sound, one that ends with the most steps."""
    lines: dict[str, list[Problem]] = {}
    for problem in evolved:  # parents come before their children
        if problem.lineage and problem.lineage.parent in known and not (problem.truth and problem.truth.flaw):
            parent = known[problem.lineage.parent]
            if parent.lineage is not None and parent.id not in lines:
                continue  # evolved by an earlier stage, or flawed
            lines[problem.id] = [*lines.get(parent.id, [parent]), problem]
    longest = max(lines.values(), key=lambda line: (len(line), line[-1].depth or 0), default=[])
    if len(longest) < 3:
        return ""
    steps = [f"<span class=dim>seed:</span> {_e(longest[0].question)}"]
    for parent, child in pairwise(longest):
        assert child.lineage is not None
        steps.append(
            f"<span class=dim>round {child.lineage.round}, {OPERATIONS.get(child.lineage.operation, _e(child.lineage.operation))}:</span> {_marked(parent, child)}"
        )
    return f"<h3>One problem through the rounds</h3><div class=card>{'<br>'.join(steps)}</div>"


def _rewrite(parent: Problem | None, child: Problem) -> str:
    if parent is None:
        return f"<div class=card>{_e(child.question)}</div>"
    depths = f" <span class=dim>({parent.depth} → {child.depth} steps)</span>" if parent.depth and child.depth else ""
    return f"<div class=card><span class=dim>before:</span> {_e(parent.question)}<br><span class=dim>after:</span> {_marked(parent, child)}{depths}</div>"


def _marked(parent: Problem, child: Problem) -> str:
    """The child's question; its new words are marked where it is a revision and not another problem."""
    old, new = parent.question.split(), child.question.split()
    before = Counter(old)
    if len(child.question) > LONGEST or sum(before[word] for word in new) > PAIRS:
        return _e(child.question)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    if matcher.ratio() < SAME_TEXT:
        return _e(child.question)
    pieces = [(tag, _e(" ".join(new[start:end]))) for tag, _, _, start, end in matcher.get_opcodes() if end > start]
    return " ".join(text if tag == "equal" else f"<mark>{text}</mark>" for tag, text in pieces)


def _reward_model(kind: str, manifest: dict[str, Any], metrics: dict[str, list]) -> str:
    result = manifest.get("result", {}) if manifest else {}
    parts = [_charts(line_chart("training loss", {"loss": metrics.get(f"{kind}/loss", [])}, "optimiser step"))]
    if not result:
        return "".join(parts) if any(metrics.values()) else ""
    for key, word, label in (
        ("by_flaw", "", "Sound problem above a flawed one, by flaw (0.5 is guessing)"),
        ("by_gap", "distance ", "Right order by distance in the judge's ranking (0.5 is guessing)"),
        ("by_depth", "depth ", "Step AUROC by the problem's depth in reasoning steps (0.5 is guessing)"),
    ):
        if result.get(key):
            parts.append(f"<h3>{label}</h3>" + _bars(((FLAWS, word + name, value) for name, value in result[key].items()), most=1.0))
    parts.append(
        "<h3>All measures, on held-out data</h3>"
        + _table(["measure", "value", "meaning"], [(key, value, MEASURES.get(key, "")) for key, value in _scalars(result)])
    )
    return "".join(parts)


def _training(kind: str, manifest: dict[str, Any], found: dict[str, list]) -> str:
    if not found and not manifest:
        return ""

    def one(title: str, key: str) -> str:
        return line_chart(title, {"": found.get(key, [])}, "iteration" if kind in BY_ITERATION else "optimiser step")

    if kind in BY_ITERATION:
        note = (
            "Good signs: the total reward rises, KL (how far the policy has moved from its start) stays small, and exact match with the known answers rises too. "
            "A reward that rises while exact match falls means that the policy fools the reward models."
        )
        charts = [
            line_chart(
                "reward, mean of samples",
                {
                    "r_I": found.get("reward/instruction", []),
                    "r_A": found.get("reward/answer", []),
                    "total = r_I × r_A": found.get("reward/total", []),
                },
                "iteration",
            ),
            one("samples that match the known answer", "monitor/exact_match"),
            one("pass rate of the prompts, by votes and the PRM", "rollout/pass_rate"),
            one("KL from the start, nats an answer", "ppo/kl"),
            one("KL from the start, nats a token", "grpo/kl"),
            one("length, tokens an answer", "rollout/length"),
            one("steps an answer", "rollout/steps"),
            one("share of answers that end by themselves", "rollout/finished"),
            one("entropy (variety), nats a token", f"{kind}/entropy"),
            one("share of clipped tokens", "ppo/clip_fraction"),
            one("share of clipped tokens", "grpo/clip_ratio_region_mean"),
            one("share of answers in groups of equal rewards, which teach nothing", "grpo/frac_reward_zero_std"),
            one("critic: explained variance, 1 is best", "value/explained_variance"),
            one("critic: loss", "value/loss"),
            line_chart(
                "seconds an iteration",
                {part: found.get(f"time/{part}", []) for part in ("evolve", "rollout", "reward", "forward", "update")},
                "iteration",
            ),
            one("tokens a second", "perf/tokens_per_second"),
        ]
        return f"<p>{note}</p>" + _charts(*charts)
    losses = {"training": found.get(f"{kind}/loss", []), "held back": found.get(f"{kind}/eval_loss", [])}
    charts = _charts(
        line_chart("loss", losses, "optimiser step"),
        one("pairs in the right order", f"{kind}/rewards_accuracies"),
        one("margin between the two of a pair", f"{kind}/rewards_margins"),
    )
    return charts + (_table(["result", "value"], _scalars(manifest["result"])) if manifest else "")


def _rollouts(run_dir: Path, name: str, kinds: dict[str, str]) -> str:
    """One sample a problem before a second one of any; the known answer, which the policy never saw, stands beside it."""
    rows = sorted(_rows(run_dir / name / "rollouts.jsonl", Rollout), key=lambda row: row.sample)[:ROLLOUTS]
    if not rows:
        return ""
    wanted = {row.problem_id for row in rows}
    known = {key: problem for key, problem in _problems(run_dir, kinds).items() if key in wanted}
    cards = []
    for row in rows:
        steps = []
        for place, line in enumerate(line for line in _cut(row.text).splitlines() if line.strip()):
            score = row.step_scores[place] if place < len(row.step_scores) else None
            colour = f"hsl({120 * score:.0f} 65% 45%)" if score is not None else "gray"
            shown = "    " if score is None else f"{score:.2f}"
            steps.append(f'<span class=step style="border-color:{colour}"><span class=dim>{shown}</span> {_e(line)}</span>')
        cards.append(
            f"<div class=card>{_e(row.question)}{''.join(steps)}<span class=dim>"
            f"{'not judged' if row.masked else f'r_I {row.instruction:.2f} × r_A {row.answer:.2f} = {row.total:.2f}'}, "
            f"{row.length} tokens{'' if row.finished else ', cut off'}{_known(known.get(row.problem_id))}</span></div>"
        )
    note = "The number before each step is its score: how sure the process reward model is that the step is right. r_A is the lowest of them, or 0 where the answer is cut off or cannot be read."
    return f"<p>{note}</p>{''.join(cards)}"


def _problems(run_dir: Path, kinds: dict[str, str]) -> dict[str, Problem]:
    """All problems of the run by id, those of PPO's fresh rounds too."""
    known: dict[str, Problem] = {}
    for name, kind in kinds.items():
        folder = run_dir / name
        if kind == "problems":
            known |= {problem.id: problem for problem in _rows(folder / "seeds.jsonl", Problem)}
        elif kind == "evolve":
            known |= {
                row.problem.id: row.problem for row in _rows(folder / "eliminated.jsonl", Eliminated)
            }  # outside the band: parents too
            known |= {problem.id: problem for problem in _rows(folder / "evolved.jsonl", Problem)}
        elif kind == "ppo":
            files = sorted((folder / "fresh").glob("round_*/evolved.jsonl"))
            known |= {problem.id: problem for file in files for problem in _rows(file, Problem)}
    return known


def _known(problem: Problem | None) -> str:
    if problem is None:
        return ""
    if problem.truth and problem.truth.flaw:
        return f"; the problem is flawed: {_e(FLAWS.get(problem.truth.flaw, problem.truth.flaw))}"
    return f"; known answer {_e(problem.answer)}" if problem.answer else ""


def _timeline(run_dir: Path, manifests: dict[str, Any], kinds: dict[str, str]) -> str:
    longest = max((manifest.get("seconds", 0) for manifest in manifests.values()), default=0) or 1
    rows = []
    for name, manifest in manifests.items():
        if kinds[name] == "report":
            continue
        state = f"{manifest['seconds']:.0f} s" if manifest else "begun" if (run_dir / name / "started.json").is_file() else "not begun"
        rows.append(f"<tr><td>{_e(name)}<td class=n>{state}{_bar(manifest.get('seconds', 0), longest)}")
    return f"<table class=bars>{''.join(rows)}</table>"


# ---------------------------------------------------------------------------------------------- helpers


def _e(value: object) -> str:
    return html.escape(_cut(str(value)))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _scalars(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, _number(value)) for key, value in result.items() if isinstance(value, int | float) and not isinstance(value, bool)]


def _title(title: str, name: str, kind: str) -> str:
    return title if name == kind else f"{title} ({name})"


def _named(name: str, meanings: dict[str, str]) -> str:
    return _e(name) + (f" <span class=dim>{_e(meanings[name])}</span>" if name in meanings else "")


def _most(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _bar(value: float | None, most: float) -> str:
    return f"<td><div style='width:{100 * value / most:.0f}%'></div>" if value and value > 0 else "<td>"


def _bars(rows: Iterable[tuple[dict[str, str], str, float | None]], most: float | None = None) -> str:
    """Rows of (meanings of names, name, value), each with a bar; the longest is `most` or else the largest value."""
    listed = list(rows)
    top = most or max((value or 0 for _, _, value in listed), default=0) or 1
    cells = [f"<tr><td>{_named(name, meanings)}<td class=n>{_number(value)}{_bar(value, top)}" for meanings, name, value in listed]
    return f"<table class=bars>{''.join(cells)}</table>" if cells else "<p class=dim>None.</p>"


def _gain(gain: dict[str, Any]) -> str:
    mean, low, high = in_points(gain)
    return f"{mean} points, {low} to {high}"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):  # a measure without data
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Columns after the first are numbers, and stand right; one called meaning is text."""
    kinds = [" class=n" if place and cell != "meaning" else "" for place, cell in enumerate(head)]
    body = "".join("<tr>" + "".join(f"<td{kind}>{_e(cell)}" for kind, cell in zip(kinds, row, strict=True)) for row in rows)
    return f"<table><tr>{''.join(f'<th{kind}>{_e(cell)}' for kind, cell in zip(kinds, head, strict=True))}{body}</table>"


def _charts(*charts: str) -> str:
    return f"<div class=charts>{''.join(charts)}</div>"


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _rows(file: Path, record: Any) -> list[Any]:
    return list(read_jsonl(file, record)) if file.is_file() and file.stat().st_size else []


def _metrics(file: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """stage -> metric -> [(step, value)]"""
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                stage, step = str(row.pop("stage")), float(row.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # the last line of a run that was killed
                continue
            for name, value in row.items():
                if name != "time" and isinstance(value, int | float):
                    found[stage][name].append((step, value))
    return found
