"""Runs the server: the models in one thread, HTTP in another, until SIGTERM or Ctrl-C; what is queued then is still answered."""

from __future__ import annotations

import importlib.util
import signal
import socket
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from reward_models.client import read_token
from reward_models.errors import UserError
from reward_models.serving.batching import Batcher, BatchLimits

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
LEAVE_AFTER_S = 120  # of a graceful end: a client that does not take its answer holds nobody up for ever


@dataclass(frozen=True)
class ServeOptions:
    """What the command line gives. `token_env` names the variable that holds the token; it is never an argument itself."""

    irm: str | None = None
    prm: str | None = None
    host: str = "127.0.0.1"
    port: int = 8500  # 0: any that is free
    device: str = "auto"
    token_env: str | None = None
    batch: BatchLimits = field(default_factory=BatchLimits)
    max_rows: int = 1024
    max_body_bytes: int = 8 * 2**20


def serve(options: ServeOptions) -> None:
    """Returns when told to stop. Raises UserError where it cannot start."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}, not installed here", fix="pip install 'rlef[serve]'")
    token = _token(options.token_env)
    for kind, folder in (("irm", options.irm), ("prm", options.prm)):
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"--{kind} {folder}: no such folder", fix="give the folder of a trained reward model")
    if options.irm is None and options.prm is None:
        raise UserError("nothing to serve", fix="give --irm DIR, --prm DIR, or both")
    if options.max_rows > options.batch.queue_rows:
        raise UserError(
            f"--max-rows {options.max_rows} is more than --queue {options.batch.queue_rows}: such a request would never fit",
            fix="change one of them",
        )
    listening = _listen(options.host, options.port)

    import uvicorn

    from reward_models.serving.app import RequestLimits, create_app
    from reward_models.serving.metrics import Metrics
    from reward_models.serving.models import load

    metrics = Metrics()
    batcher = Batcher(partial(load, options.irm, options.prm, options.device), options.batch, metrics.forward)
    app = create_app(batcher, metrics, RequestLimits(options.max_rows, body_bytes=options.max_body_bytes), token)
    # An access line a request would be the server's largest cost; the metrics count them.
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=LEAVE_AFTER_S)
    server = uvicorn.Server(config)
    host, port = listening.getsockname()[:2]
    print(f"listening at http://{f'[{host}]' if ':' in host else host}:{port}; GET /health says when the models are loaded", flush=True)
    if options.host not in LOOPBACK and token is None:
        print("anybody who reaches this address may ask: --token-env NAME lets only those in who know a token", file=sys.stderr, flush=True)

    def leave(*_: object) -> None:
        server.should_exit = True

    # A signal before uvicorn listens to them counts, and the one that ended it, which it raises once more at its end, must not kill us.
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        batcher.start(leave)
        server.run(sockets=[listening])
        batcher.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if batcher.failure is not None:
        raise batcher.failure


def _token(name: str | None) -> str | None:
    if name is None:
        return None
    token = read_token(name)
    if not token:
        raise UserError(f"--token-env {name}: this environment variable is not set, or empty", fix=f"export {name}=..., the token itself")
    return token


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error})", fix="choose another port, or 0 for any") from None
