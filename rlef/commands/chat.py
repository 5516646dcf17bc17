"""`rlef chat`: ask a run's policy, and see what the run's reward models think of the question and of each step of the answer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlef.commands.arguments import above_zero, within
from rlef.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from rlef.config import Config
    from rlef.rl.reward import Score
    from rlef.run_dir import RunDir

MAX_TOKENS = 256  # of an answer, where the stage says nothing


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "chat",
        help="ask a run's policy questions, and see the score of each step",
        epilog="example: rlef chat runs/quickstart\nexample: rlef chat runs/quickstart --stage ppo --temperature 1 --seed 3",
    )
    command.add_argument("run_dir", metavar="RUN", help="run directory")
    command.add_argument("--stage", metavar="NAME", help="the stage that trained the policy (default: the last)")
    command.add_argument("--temperature", type=within(0, 10, "a number"), default=0.0, metavar="T", help="0: the likeliest token each")
    command.add_argument("--max-tokens", type=above_zero, metavar="N", help="of an answer (default: as in the stage)")
    command.add_argument("--seed", type=int, default=0, help="of the answers at a temperature above 0")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command.add_argument(
        "--json", action="store_true", help="answers as lines of JSON, with their scores; questions may come from a pipe, one a line"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Each line is a question of its own. Ctrl-C ends an answer that is being written; else it leaves, as Ctrl-D does."""
    from rich.console import Console

    from reward_models.terminal import inert
    from rlef.load_config import config_of
    from rlef.run_dir import RunDir

    console = Console(highlight=False, soft_wrap=True)
    config, run_dir = config_of(options.run_dir), RunDir(options.run_dir)
    policy = Policy(config, run_dir, options)
    if sys.stdin.isatty():
        console.print(f"{policy.stage}, {policy.judges}. One question a line; Ctrl-D leaves.", style="dim")
    for question in _questions():
        if not sys.stdin.isatty() and not options.json:
            print(inert(f"> {question}"), flush=True)
        try:
            _answer(policy, question, console, as_json=options.json)
        except UserError as error:  # of this question alone
            print(f"error: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            console.print()
    return 0


def _questions() -> Iterator[str]:
    """From the terminal with a prompt, or the lines of a pipe."""
    if not sys.stdin.isatty():
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    import readline  # noqa: F401  arrow keys and history in input()

    while True:
        try:
            question = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if question:
            yield question


def _answer(policy: Policy, question: str, console: Console, *, as_json: bool) -> None:
    """Each step as soon as it is written, with its score; then the reward of the whole."""
    from rich.text import Text

    from reward_models.terminal import inert
    from rlef.views.step_view import colour, step_line

    def show(step: str, score: float | None) -> None:
        console.print(step_line(step, score))

    score = policy.answer(question, (lambda step, score: None) if as_json else show)
    if as_json:
        keys = ("text", "step_scores", "instruction", "answer", "total", "zeroed", "extracted")
        shown = keys if policy.reward is not None else ("text",)
        print(json.dumps({"question": question} | {key: getattr(score, key) for key in shown}), flush=True)  # ASCII: nothing in it acts
    elif policy.reward is not None:
        why = f" ({inert(score.zeroed).replace('_', ' ')})" if score.zeroed else ""
        told = f"     r_I {score.instruction:.2f} x r_A {score.answer:.2f} = {score.total:.2f}{why}\n"
        console.print(Text(told, style=colour(score.total)))
    else:
        console.print()


class Policy:
    """A run's policy beside the run's reward models."""

    def __init__(self, config: Config, run_dir: RunDir, options: argparse.Namespace) -> None:
        """Raises UserError where the run has no finished policy."""
        import torch

        from reward_models.instruction import InstructionRewardModel
        from reward_models.process import ProcessRewardModel
        from rlef.commands.export import KINDS, chosen_stage
        from rlef.config import RewardSettings
        from rlef.models import load_policy, load_tokenizer, pick_device, stop_ids
        from rlef.rl.reward import RewardFunction

        self.config, self.stage = config, chosen_stage(config, run_dir, "policy", options.stage)
        settings, trust = config.stages[self.stage], config.model.trust_remote_code
        self.temperature = options.temperature
        self.max_tokens = options.max_tokens or (settings.max_tokens if isinstance(settings, RewardSettings) else MAX_TOKENS)
        device = pick_device(options.device)
        folder = run_dir.stage(self.stage) / "model"
        self.tokenizer = load_tokenizer(folder, trust_remote_code=trust)
        self.model = load_policy(folder, dtype=config.model.dtype, trust_remote_code=trust, device=device)
        self.stops = stop_ids(self.tokenizer, self.model)

        def judge(what: str) -> tuple[str, Path] | None:
            made = [name for name, one in config.stages.items() if one.kind in KINDS[what] and run_dir.manifest(name) is not None]
            return (made[-1], run_dir.stage(made[-1]) / "model") if made else None

        prm, irm = judge("prm"), judge("irm")
        self.prm = ProcessRewardModel.load(prm[1], device) if prm else None
        self.reward: RewardFunction | None = None
        if self.prm is not None:
            judges = {
                "prm": self.prm, "irm": InstructionRewardModel.load(irm[1], device) if irm else None,
                "tokenizer": self.tokenizer, "model": config.model, "stops": self.stops,
            }  # fmt: skip
            self.reward = RewardFunction(**judges)
        named = [name for name, _ in (one for one in (irm, prm) if one is not None)]
        self.judges = f"judged by {' and '.join(named)}" if prm else "without a process reward model: no scores"
        torch.manual_seed(options.seed)

    def answer(self, question: str, show: Callable[[str, float | None], None]) -> Score:
        """`show` is called with each step once it is whole. Without reward models all scores are 0."""
        import torch

        from reward_models.steps import split_steps, until_answer
        from rlef.models import decode, prompt_ids
        from rlef.records import Problem, problem_id
        from rlef.rl.reward import Score
        from rlef.rollout.base import Completion

        prompt = prompt_ids(self.tokenizer, question, self.config.model)
        room = (getattr(self.model.config, "max_position_embeddings", None) or 2**31) - len(prompt)
        if room < 1:
            raise UserError(f"a question of {len(prompt)} tokens is longer than the policy reads", fix="ask a shorter one")
        shown = 0

        def tell(tokens: list[int], *, last: bool) -> None:
            nonlocal shown
            steps = split_steps(decode(self.tokenizer, tokens, self.stops), self.config.model.step_delimiter)
            counted = len(until_answer(steps, self.config.model.answer_marker))
            whole = [step.text for step in steps if step.closed or last]
            for place in range(shown, len(whole)):
                show(whole[place], self._score(question, whole[: place + 1]) if place < counted else None)
            shown = len(whole)

        streamer: Any = _Tokens(len(prompt), lambda tokens: tell(tokens, last=False))
        ids = torch.tensor([prompt], device=self.model.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:  # of the whole distribution, as in training
            sampling = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        self.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(self.max_tokens, room),
            eos_token_id=list(self.stops),
            pad_token_id=self.tokenizer.pad_token_id,
            streamer=streamer,
            **sampling,
        )
        tokens = streamer.tokens
        tell(tokens, last=True)
        finished = bool(tokens) and tokens[-1] in self.stops
        if self.reward is None:
            text = decode(self.tokenizer, tokens, self.stops)
            return Score(text, (), (), (), 0.0, 0.0, None, None, 0, 0, masked=True)
        problem = Problem(id=problem_id(question), question=question)
        return self.reward.score([problem], [Completion(tuple(tokens), (), finished)])[0]

    def _score(self, question: str, steps: list[str]) -> float | None:
        """Of the last of the steps: no later one changes it. None without a model, or where it reads no more."""
        if self.prm is None:
            return None
        scores = self.prm.score([question], [steps])[0].scores
        return scores[-1] if scores else None


class _Tokens:
    """Takes what `generate` hands to a streamer, the prompt first."""

    def __init__(self, skipped: int, told: Callable[[list[int]], None]) -> None:
        self.skipped, self.told, self.tokens = skipped, told, list[int]()

    def put(self, value: Any) -> None:
        tokens = value.flatten().tolist()
        if self.skipped:
            self.skipped -= len(tokens)
            return
        self.tokens += tokens
        self.told(self.tokens)

    def end(self) -> None:
        """Nothing is held back."""
