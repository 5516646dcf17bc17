"""`rlef export`: a run's policy or reward model in a folder of its own, with a model card, for plain transformers or a hub."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlef.errors import UserError

if TYPE_CHECKING:
    from rlef.cards.model_card import Made
    from rlef.config import Config
    from rlef.run_dir import RunDir

KINDS = {"policy": ("sft", "ppo", "dpo", "grpo", "rft"), "irm": ("irm",), "prm": ("prm", "orm")}
TOKEN = "HF_TOKEN"
ADAPTER = "adapter/"
FRAME = ("README.md", "training_args.bin", "metrics.jsonl")  # in a model's folder, and nobody's elsewhere; the card is written anew


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "export",
        help="write a run's policy or reward model into a folder with a model card",
        epilog="example: rlef export runs/quickstart --policy exported --stage ppo\n"
        "example: rlef export runs/quickstart --prm my_prm --push me/my-prm",
    )
    command.add_argument("run_dir", metavar="RUN", help="run directory")
    wanted = command.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--policy", metavar="DIR", help="the policy that was trained last")
    wanted.add_argument("--irm", metavar="DIR", help="the instruction reward model")
    wanted.add_argument("--prm", metavar="DIR", help="the process (or outcome) reward model")
    command.add_argument("--stage", metavar="NAME", help="the stage that made it (default: the last of its kind)")
    command.add_argument("--adapter", action="store_true", help="put the LoRA adapter beside the weights, which it is merged into")
    command.add_argument("--push", metavar="OWNER/NAME", help=f"upload it as a new private repository; the token is read from {TOKEN}")
    command.add_argument("--public", action="store_true", help="with --push: for all to see")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from reward_models import disk
    from rlef.load_config import config_of
    from rlef.run_dir import RunDir

    what = next(key for key in KINDS if getattr(options, key) is not None)
    target = Path(getattr(options, what))
    if options.public and not options.push:
        raise UserError("--public: nothing is pushed", fix="give --push OWNER/NAME, or leave it out")
    if options.push and not os.environ.get(TOKEN):
        raise UserError(f"--push: no token in {TOKEN}", fix=f"export {TOKEN}=.. (of an account that may write), or leave --push out")
    config, run_dir = config_of(options.run_dir), RunDir(options.run_dir)
    stage = chosen_stage(config, run_dir, what, options.stage)
    with disk.told(target, but=UserError):
        export(config, run_dir, what, stage, target, adapter=options.adapter)
    print(f"{target}: {what} of stage {stage}")
    if options.push:
        print(push(target, options.push, public=options.public))
    return 0


def chosen_stage(config: Config, run_dir: RunDir, what: str, given: str | None) -> str:
    """The finished stage whose model is meant. Raises UserError where there is none."""
    done = [name for name, stage in config.stages.items() if stage.kind in KINDS[what] and run_dir.manifest(name) is not None]
    if given is not None and given not in done:
        raise UserError(f"--stage {given}: no finished stage that makes the {what}", fix=f"one of: {', '.join(done) or 'none yet'}")
    if not done:
        raise UserError(f"{run_dir.root}: no finished stage makes the {what}", fix=f"run one of kind {', '.join(KINDS[what])} first")
    return given or done[-1]


def export(config: Config, run_dir: RunDir, what: str, stage: str, target: Path, *, adapter: bool = False) -> None:
    """Whole or not at all. Raises UserError where `target` holds anything, or a file is not the one that the stage wrote."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: holds something already", fix="give a new folder, or empty that one")
    from reward_models.records import file_digest

    source, manifest = run_dir.stage(stage), run_dir.manifest(stage)
    assert manifest is not None
    files = {name: copied for name in manifest.files if (copied := _copied(name, adapter=adapter)) is not None}
    if adapter and not any(copied.startswith(ADAPTER) for copied in files.values()):
        raise UserError(f"--adapter: {stage} was trained without one", fix=f"leave it out, or train with {stage}.lora")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, copied in files.items():
            copy = partial / copied
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not (source / name).is_file() or file_digest(shutil.copyfile(source / name, copy)) != manifest.files[name]:
                raise UserError(f"{source / name}: gone, or not as it was written", fix=f"make it again: rlef run CONFIG --from {stage}")
        if adapter:
            _unnamed(config, partial / ADAPTER / "adapter_config.json")
        (partial / "README.md").write_text(_card(config, run_dir, what, stage, partial), encoding="utf-8")
        if target.is_dir():
            target.rmdir()
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copied(name: str, *, adapter: bool) -> str | None:
    """Where a stage's file goes: its model, and the adapter, which lies in the model's folder or beside it. None: nowhere."""
    kept = name.removeprefix("model/")
    wanted = adapter if kept.startswith(ADAPTER) else kept != name
    return kept if wanted and Path(kept).name not in FRAME else None


def _unnamed(config: Config, file: Path) -> None:
    """peft writes down where the base lay: a folder of this machine."""
    from rlef.cards.licences import base_of
    from rlef.run_dir import read_json, write_json

    write_json(file, read_json(file) | {"base_model_name_or_path": base_of(config)})


def _card(config: Config, run_dir: RunDir, what: str, stage: str, folder: Path) -> str:
    from rlef.cards.model_card import notes, policy_card, with_notes

    made = made_by(config, run_dir, stage)
    if what == "policy":
        templated = (folder / "chat_template.jinja").is_file() or "chat_template" in _json(folder / "tokenizer_config.json")
        return policy_card(made, templated=templated)
    own = run_dir.stage(stage) / "model" / "README.md"
    return with_notes(own.read_text(encoding="utf-8", errors="replace") if own.is_file() else f"# {stage}", notes(made))


def made_by(config: Config, run_dir: RunDir, stage: str) -> Made:
    """What the run directory says of a stage's model."""
    from rlef.cards.licences import stated_licence
    from rlef.cards.model_card import Made

    manifests = {name: manifest for name in config.stages if (manifest := run_dir.manifest(name)) is not None}
    results: dict[str, Any] = {}
    for name, manifest in manifests.items():
        if config.stages[name].kind == "evaluate":
            results |= manifest.result
    licence = None
    if config.model.path is not None and (card := Path(config.model.path, "README.md")).is_file():
        licence = stated_licence(card.read_text(encoding="utf-8", errors="replace"))
    return Made(config, stage, _trained_from(config, stage), manifests, results, run_dir.info(), licence)


def _trained_from(config: Config, stage: str) -> tuple[str, ...]:
    """The stages whose weights went into this one's, the first of them first; what lies outside the run has none."""
    from rlef.pipeline import resolve_inputs

    try:
        before = resolve_inputs(config, stage).get("init")
    except UserError:  # a folder that it was trained from is not here
        return ()
    return (*_trained_from(config, before), before) if before in config.stages else ()


def _json(file: Path) -> dict[str, Any]:
    from rlef.run_dir import read_json

    return read_json(file) if file.is_file() else {}


def push(folder: Path, repository: str, *, public: bool) -> str:
    """Upload to a repository that is made for it: into one that exists a private model might be laid open. Returns its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=os.environ[TOKEN])
    try:
        made = api.create_repo(repository, private=not public)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by rlef")
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise UserError(
            f"--push {repository}: {str(error).strip().splitlines()[0]}",
            fix=f"{folder} is whole; give the name of a repository that is not there yet, and a token that may write",
        ) from None
    return str(made)
