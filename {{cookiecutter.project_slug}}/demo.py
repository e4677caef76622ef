"""The model of a run in the browser: `python demo.py [RUN] [--checkpoint best] [--host 127.0.0.1] [--port 7860] …`."""

import argparse
import sys

sys.path.insert(0, __file__.removesuffix("demo.py"))  # which PYTHONSAFEPATH and python -P leave out
from torch_starter import load_run, run_lookup
from torch_starter.demo.serving import refuse, serve
from torch_starter.explanations import explain_errors
from torch_starter.files import display_path


@explain_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python demo.py [RUN] [--checkpoint CHECKPOINT] [--host HOST] [--port PORT] [--share] [key=value …]",
        description="A page on which the model answers: draw a digit, add an image, set the columns of a row.",
    )
    parser.add_argument("words", nargs="*", metavar="RUN key=value", help="a run folder (default: latest); changes")
    parser.add_argument("--checkpoint", default="best", help="a name in RUN/checkpoints; default: best")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for other machines, too; default: for this one")
    parser.add_argument("--port", type=int, help="default: 7860, or the next one that is free")
    parser.add_argument("--share", action="store_true", help="a public address, by a tunnel through Gradio's servers")
    arguments = parser.parse_intermixed_args()
    refuse(arguments.host, arguments.port)

    folder, overrides = run_lookup.find_with_overrides(arguments.words, run_lookup.has_checkpoint)
    print(f"{display_path(folder)}, {arguments.checkpoint.removesuffix('.ckpt')}.ckpt, is loading …", file=sys.stderr)
    serve(load_run(folder, arguments.checkpoint, overrides), arguments.host, arguments.port, arguments.share)


if __name__ == "__main__":
    main()
