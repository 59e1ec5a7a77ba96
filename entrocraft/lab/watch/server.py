"""The page's server: who may see the page, and where it listens."""

from __future__ import annotations

import hmac
import secrets
from typing import Any
from urllib.parse import urlsplit

from dash import Dash
from flask import Response, abort, redirect, request
from werkzeug.serving import BaseWSGIServer, make_server

LOCAL = ("localhost", "127.0.0.1", "::1")
_COOKIE = "entrocraft_token"


def serve(app: Dash, host: str, port: int, token: str | None) -> tuple[BaseWSGIServer, str]:
    """Return a server that is listening, and the address to open.

    On another host than this machine itself a token is asked for, and made if none is given.

    Raises:
        ValueError: the address cannot be listened at.
    """
    if token is None and host not in LOCAL:
        token = secrets.token_urlsafe(24)
    _guard(app.server, token)
    try:
        server = make_server(host, port, app.server, threaded=True)
    except (OSError, SystemExit) as error:  # werkzeug ends the process where a port is taken
        raise ValueError(
            f"cannot listen at {host}:{port} ({error}); choose another port with --port, 0 takes a "
            "free one"
        ) from None
    server.daemon_threads = True  # type: ignore[attr-defined]
    shown = f"[{host}]" if ":" in host else host
    query = "" if token is None else f"?token={token}"
    return server, f"http://{shown}:{server.server_port}/{query}"


def _guard(server: Any, token: str | None) -> None:
    """Let in who has the token; without one, only pages of this machine's own address."""

    @server.before_request
    def check() -> Any:
        if request.origin and urlsplit(request.origin).netloc != request.host:
            abort(403, "requests of other sites are not answered")
        if token is None:
            # a name that others have pointed at this machine is not its own
            if (urlsplit(f"//{request.host}").hostname or "") not in LOCAL:
                abort(403, f"this page is served to {', '.join(LOCAL)} alone; see --host")
            return None
        given = request.args.get("token")
        if given is not None and _same(given, token):
            answer: Response = redirect(request.path)  # type: ignore[assignment]
            answer.set_cookie(_COOKIE, token, httponly=True, samesite="Strict")
            return answer
        if not _same(request.cookies.get(_COOKIE, ""), token):
            abort(401, "open the address with the token that entrocraft watch has printed")
        return None


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())
