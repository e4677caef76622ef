"""Write the Vietnamese chapters: the text of tutorials/vi/*.md with the code of tutorials/*.py."""

import re
import shutil
from pathlib import Path

VI = Path(__file__).resolve().parent
TUTORIALS = VI.parent
OUTPUTS = TUTORIALS.parent / "outputs/tutorials/vi"


def read_cells(chapter: str) -> list[str]:
    """Return the Vietnamese text cells of a chapter, which ``<!-- NUMBER -->`` separates."""
    parts = re.split(r"^<!-- (\d+) -->\n", (VI / f"{chapter}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    if parts[1::2] != [str(number) for number in range(1, len(parts[::2]))]:
        raise ValueError(f"tutorials/vi/{chapter}.md: the markers must be <!-- 1 -->, <!-- 2 --> and so on.")
    return [body.strip() for body in parts[2::2]]


def weave(chapter: str) -> str:
    """Return the source of a chapter with its text cells in Vietnamese."""
    texts = iter(read_cells(chapter))
    source = (TUTORIALS / f"{chapter}.py").read_text(encoding="utf-8")

    def translate(_: re.Match[str]) -> str:
        return "# %% [markdown]\n" + "".join(f"# {line}".rstrip() + "\n" for line in next(texts).splitlines())

    return re.sub(r"^# %% \[markdown\]\n(#(?! %%).*\n)*", translate, source, flags=re.MULTILINE)


if __name__ == "__main__":
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    for helper in TUTORIALS.glob("[a-z]*.py"):
        shutil.copy(helper, OUTPUTS)
    for path in sorted(TUTORIALS.glob("[0-9]*.py")):
        (OUTPUTS / path.name).write_text(weave(path.stem), encoding="utf-8")
        print(f"outputs/tutorials/vi/{path.name}")
