"""Serve the page of a run until Ctrl-C."""

import contextlib
import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..mistakes import UserError

if TYPE_CHECKING:
    from ..loaded_run import Run

LARGEST_UPLOAD = "20mb"  # photos from phones are smaller


def refuse(host: str, port: int | None) -> None:
    """Raise UserError if the page cannot be served, before the run is loaded, which takes seconds."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError('demo.py needs Gradio, which is not installed: pip install -e ".[demo]"')
    try:
        socket.create_server((host, port or 0)).close()
    except (OSError, OverflowError) as error:
        where = f"--host {host}" + (f" --port {port}" if port else "")
        raise UserError(f"Cannot serve a page at {where}: {error}. Choose another.") from error


def serve(run: "Run", host: str, port: int | None, is_shared: bool) -> None:
    """Serve the page of a run, and print its address, until the process is interrupted.

    Args:
        run: The run, see ``load_run``.
        host: See ``open_page``.
        port: See ``open_page``.
        is_shared: See ``open_page``.
    """
    with open_page(run, host, port, is_shared) as (page, addresses):
        try:
            print(*addresses, "(press Ctrl-C to stop)", flush=True)
            page.block_thread()
        finally:
            print("The page is closed.", file=sys.stderr)


@contextlib.contextmanager
def open_page(run: "Run", host: str, port: int | None = None, is_shared: bool = False) -> Iterator[tuple]:
    """Serve the page of a run within the context.

    No data leave the machine unless the page is shared, and only a temporary folder for uploads is written.

    Args:
        run: The run, see ``load_run``.
        host: The address to listen on.
        port: The port to listen on; by default 7860, or the next free one.
        is_shared: Whether Gradio opens a tunnel, so that everyone who knows its address can use the page.

    Yields:
        The page and its addresses.
    """
    if not is_shared:  # Gradio requests its own page as a check, and a proxy cannot reach it
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            os.environ.pop(name, None)
            os.environ.pop(name.upper(), None)
    with tempfile.TemporaryDirectory(prefix="demo_", ignore_cleanup_errors=True) as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}  # before Gradio is imported
        from .page import make_page

        page = make_page(run)
        try:
            _, *addresses = page.launch(
                server_name=host,
                server_port=port or None,
                share=is_shared,
                max_file_size=LARGEST_UPLOAD,
                css_paths=Path(__file__).with_name("page.css"),
                footer_links=["gradio", "settings"],
                run_history=False,  # it would be stored in the browser
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
                pwa=False,
                quiet=True,
                prevent_thread_lock=True,
            )
            yield page, [address for address in addresses if address]
        finally:
            page.close(verbose=False)
