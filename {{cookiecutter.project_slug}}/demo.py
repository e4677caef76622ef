"""Serve a model in the browser: `python demo.py [RUN] [--checkpoint best] [--host 127.0.0.1] [--port 7860] …`."""

import argparse
import sys

sys.path.insert(0, __file__.removesuffix("demo.py"))  # even with PYTHONSAFEPATH or python -P
from torch_starter import load_run, run_lookup
from torch_starter.demo.serving import refuse, serve
from torch_starter.explanations import explain_errors
from torch_starter.files import display_path


@explain_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python demo.py [RUN] [--checkpoint CHECKPOINT] [--host HOST] [--port PORT] [--share] [key=value …]",
        description="Serve a page that shows predictions: draw a digit, upload an image, or set the columns of a row.",
    )
    parser.add_argument("words", nargs="*", metavar="RUN key=value", help="a run folder (default: latest); overrides")
    parser.add_argument("--checkpoint", default="best", help="name of a file in RUN/checkpoints; default: best")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 also serves other machines; default: 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: 7860, or the next free port")
    parser.add_argument("--share", action="store_true", help="create a public link through Gradio's servers")
    arguments = parser.parse_intermixed_args()
    refuse(arguments.host, arguments.port)

    folder, overrides = run_lookup.find_with_overrides(arguments.words, run_lookup.has_checkpoint)
    print(f"Loading {display_path(folder)}, {arguments.checkpoint.removesuffix('.ckpt')}.ckpt …", file=sys.stderr)
    serve(load_run(folder, arguments.checkpoint, overrides), arguments.host, arguments.port, arguments.share)


if __name__ == "__main__":
    main()
