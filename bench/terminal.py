"""Draw what a command prints on a terminal of a given size, as a PNG: the pictures of docs/cluster.md.

    .venv/bin/python bench/terminal.py 80 24 docs/status-80x24.png rlvr status runs
    .venv/bin/python bench/terminal.py 200 60 docs/status-200x60.png rlvr status runs

The command runs under a pseudo-terminal of that size. Of a display that is redrawn, such as `rlvr status --watch`, the picture
has the last state before Ctrl-C, which --seconds=N sends after N seconds.
"""

import argparse
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from rich.ansi import AnsiDecoder
from rich.cells import cell_len
from rich.console import Console
from rich.terminal_theme import MONOKAI

FONT_SIZE = 13
LINE_PIXELS = 16
MARGIN_PIXELS = 8
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
HOME = "\x1b[H"  # moves the cursor to the first line; a display that is redrawn begins each state with it
LEAVE = "\x1b[?1049l"  # ends the alternate screen of such a display


def output_on_terminal(command: list[str], columns: int, rows: int, seconds: float | None) -> str:
    """Return what a command writes to a terminal of this size, with its control sequences."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        os.execvpe(command[0], command, {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES")})
    output, end = b"", time.monotonic() + (seconds or float("inf"))
    while True:
        wait_s = max(0.0, end - time.monotonic()) if seconds else None
        if not select.select([terminal], [], [], wait_s)[0]:
            os.kill(pid, signal.SIGINT)
            break
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the command has ended
            break
        if not chunk:
            break
        output += chunk
    while seconds and select.select([terminal], [], [], 5.0)[0]:  # an ending command waits until its output is read
        try:
            os.read(terminal, 65536)
        except OSError:
            break
    os.waitpid(pid, 0)
    return output.decode(errors="replace")


def screen_of(output: str, prompt: str, rows: int) -> list[str]:
    """Return the lines that the terminal shows at the end: the command's prompt and output, or the last state of a display."""
    output = output.rpartition(LEAVE)[2]
    if HOME in output:
        return output.rpartition(HOME)[2].replace("\r", "").split("\n")[:rows]
    lines = [prompt, *re.sub(r"\x1b\[\?\d+[hl]", "", output).replace("\r", "").rstrip("\n").split("\n"), "$ "]
    return lines[-rows:]


def draw(lines: list[str], columns: int, rows: int, path: Path) -> None:
    """Write a picture of columns × rows characters."""
    font = ImageFont.truetype(str(FONT), FONT_SIZE)
    cell = font.getlength("M")
    size = (round(columns * cell) + 2 * MARGIN_PIXELS, rows * LINE_PIXELS + 2 * MARGIN_PIXELS)
    image = Image.new("RGB", size, tuple(MONOKAI.background_color))
    canvas = ImageDraw.Draw(image)
    console, decoder = Console(color_system="truecolor"), AnsiDecoder()
    for row, line in enumerate(lines):
        column = 0
        for segment in decoder.decode_line(line).render(console):
            style = segment.style
            color = style.color.get_truecolor(MONOKAI) if style and style.color else MONOKAI.foreground_color
            if style and style.dim:
                color = tuple(
                    round((channel + ground) / 2) for channel, ground in zip(color, MONOKAI.background_color, strict=True)
                )
            text = segment.text.rstrip("\n")
            position = (MARGIN_PIXELS + column * cell, MARGIN_PIXELS + row * LINE_PIXELS)
            canvas.text(position, text, font=font, fill=tuple(color))
            column += cell_len(text)
        if column > columns:
            sys.exit(f"line {row + 1} has {column} characters, and the terminal {columns}")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(64, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what a command prints on a terminal of a given size.")
    parser.add_argument("columns", type=int)
    parser.add_argument("rows", type=int)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--seconds", type=float, help="press Ctrl-C after so many seconds")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    output = output_on_terminal(arguments.command, arguments.columns, arguments.rows, arguments.seconds)
    lines = screen_of(output, f"$ {' '.join(arguments.command)}", arguments.rows)
    draw(lines, arguments.columns, arguments.rows, arguments.picture)


if __name__ == "__main__":
    main()
