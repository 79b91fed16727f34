"""A web server for the page, on this machine and for this machine only."""

import http.server
import webbrowser
from pathlib import Path

from common.errors import ExampleError

#: Of the page's files, by their ending.
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Static files with the types that browsers insist on, whatever this system's own tables say."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | TYPES

    def end_headers(self) -> None:
        # Asked for again each time, so that a page built anew is seen.
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line per file would bury the address."""


def make_server(folder: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server of the folder at 127.0.0.1, not yet running; port 0 takes any free one."""

    def handler(*args: object) -> Handler:
        return Handler(*args, directory=str(folder))  # type: ignore[arg-type]

    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise ExampleError(
            f"port {port} cannot be used ({error.strerror}). Give another with --port; 0 takes a free one."
        ) from error


def serve(folder: Path, port: int, *, browser: bool) -> None:
    """Serve until interrupted."""
    with make_server(folder, port) as server:
        url = f"http://localhost:{server.server_address[1]}/"
        print(f"page: open {url}\nCtrl-C stops it", flush=True)
        if browser:
            webbrowser.open(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
