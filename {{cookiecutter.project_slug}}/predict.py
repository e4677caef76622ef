"""Predict with the model of a run: `python predict.py [RUN] INPUT… [--output predictions.csv]`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, __file__.removesuffix("predict.py"))  # even with PYTHONSAFEPATH or python -P
from torch_starter import load_run, run_lookup
from torch_starter.explanations import explain_errors
from torch_starter.files import display_path
from torch_starter.mistakes import UserError
from torch_starter.prediction import find_inputs, predict
from torch_starter.prediction_output import hide_numbers, is_number, refuse_output, to_file, to_terminal


@explain_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python predict.py [RUN] INPUT… [--output FILE] [--top N] [--probabilities] [--checkpoint CHECKPOINT] …",
        description="Predict from numbers (line), images, globs, folders (classifier), a file or COLUMN=VALUE (table).",
    )
    parser.add_argument("words", nargs="+", metavar="RUN INPUT", help="a run folder (default: latest); inputs")
    parser.add_argument("--checkpoint", default="best", help="name of a file in RUN/checkpoints; default: best")
    parser.add_argument("--output", type=Path, help="write to a .csv or .json file instead of the terminal")
    parser.add_argument("--top", type=int, metavar="N", help="print the N most likely classes")
    parser.add_argument("--probabilities", action="store_true", help="print the probability of each class")
    parser.add_argument("--invert", action="store_true", help="invert images, for a model trained on bright drawings")
    parser.add_argument("--num-workers", type=int, help="processes that read inputs; default: as in the run")
    arguments = parser.parse_intermixed_args(hide_numbers(sys.argv[1:]))
    words = [word.removeprefix(" ") for word in arguments.words]
    if arguments.top is not None and arguments.top < 1:
        parser.error(f"--top is {arguments.top}; it must be at least 1")
    if arguments.output:
        refuse_output(arguments.output)

    run_lookup.refuse_mistyped(words[0], is_input=is_number(words[0]) or any(letter in words[0] for letter in "*?[="))
    folder, words = run_lookup.find(words, run_lookup.has_checkpoint)
    print(f"{display_path(folder)}, {arguments.checkpoint.removesuffix('.ckpt')}.ckpt", file=sys.stderr)
    if not words:
        raise UserError(f"No inputs for {display_path(folder)}. Pass numbers, image files, or folders.")
    run = load_run(folder, arguments.checkpoint)
    names = find_inputs(run, words, arguments.invert)
    classes = getattr(run.data, "class_names", None)
    with to_file(arguments.output) if arguments.output else to_terminal(names, classes or []) as write:
        # A progress bar would flicker between rows on the same terminal.
        has_bar = bool(arguments.output) or not sys.stdout.isatty()
        classes_of = {"top": arguments.top, "has_probabilities": arguments.probabilities}
        unreadable = predict(run, names, write, arguments.num_workers, arguments.invert, has_bar, **classes_of)
    if unreadable:
        sys.exit("\n".join(unreadable))


if __name__ == "__main__":
    main()
