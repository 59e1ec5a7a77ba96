"""`entrocraft watch [RUN_DIR ...] [--host HOST] [--port PORT] [--token TOKEN]`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser


def run(arguments: list[str]) -> None:
    """Serve the page until Ctrl-C."""
    parser = ArgumentParser(
        prog="entrocraft watch",
        description="Serve a local page that follows runs, live or finished, of any kind that "
        "entrocraft report reads: entropy against target, reward, pass@k, kept share, pressure, "
        "sample rollouts. Live runs can be steered: another schedule, pause, stop. Ctrl-C ends the "
        "page; the runs go on.",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        metavar="RUN_DIR",
        help="directories of runs, or above them",
    )
    parser.add_argument(
        "--host",
        type=str,
        default="127.0.0.1",
        help="address to listen at; any but this machine's own asks visitors for a token",
    )
    parser.add_argument("--port", type=int, default=8050, help="0 takes a free one")
    parser.add_argument(
        "--token",
        type=str,
        default=None,
        help="what visitors have to know; made at random where it is needed and not given",
    )
    options = parser.parse_args(arguments)
    try:
        from entrocraft.lab.watch.page import build
        from entrocraft.lab.watch.server import serve
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "entrocraft":
            raise
        raise ValueError(
            f"the page needs the extra [watch] ({error}): pip install 'entrocraft[watch]'"
        ) from error
    server, address = serve(build(options.runs), options.host, options.port, options.token)
    print(f"watching {', '.join(map(str, options.runs))} at {address}", flush=True)
    server.serve_forever()  # until Ctrl-C, and closes
    print("stopped; the runs go on")
