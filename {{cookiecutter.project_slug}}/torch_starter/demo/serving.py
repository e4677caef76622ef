"""A page on an address of this machine, until Ctrl-C."""

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

LARGEST_UPLOAD = "20mb"  # photographs of phones are smaller


def refuse(host: str, port: int | None) -> None:
    """Raises Mistake if there can be no page, before the seconds that loading takes."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError('demo.py needs Gradio, which is not installed: pip install -e ".[demo]"')
    try:
        socket.create_server((host, port or 0)).close()
    except (OSError, OverflowError) as error:
        where = f"--host {host}" + (f" --port {port}" if port else "")
        raise UserError(f"There can be no page at {where}: {error}. Choose another.") from error


def serve(run: "Run", host: str, port: int | None, is_shared: bool) -> None:
    """Shows the page of a run, and prints its address, until the process is interrupted."""
    with open_page(run, host, port, is_shared) as (page, addresses):
        try:
            print(*addresses, "(Ctrl-C ends it)", flush=True)
            page.block_thread()
        finally:
            print("The page is closed.", file=sys.stderr)


@contextlib.contextmanager
def open_page(run: "Run", host: str, port: int | None = None, is_shared: bool = False) -> Iterator[tuple]:
    """The page of a run, and its addresses.

    Nothing leaves the machine unless the page is shared, and nothing is written but a temporary folder for uploads.

    Args:
        run: see ``load_run``.
        host: the address to listen on.
        port: likewise; None: 7860, or the next one that is free.
        is_shared: whether Gradio opens a tunnel, so that everybody who knows its address can use the page.
    """
    if not is_shared:  # Gradio asks its own page whether it is there, which a proxy cannot answer
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            os.environ.pop(name, None)
            os.environ.pop(name.upper(), None)
    with tempfile.TemporaryDirectory(prefix="demo_", ignore_cleanup_errors=True) as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}  # before it is imported
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
                run_history=False,  # it would be in the browser's storage
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
