"""Digits as a hand draws them: strokes between points that chance moves. Nothing is copied."""

import math
import random

from playwright.sync_api import Page

Point = tuple[float, float]


def arc(x: float, y: float, width: float, height: float, start: float, end: float) -> list[Point]:
    """Points of an ellipse around (x, y), from one angle to another, in degrees; 0 is to the right, 90 is down."""
    angles = [math.radians(start + (end - start) * step / 11) for step in range(12)]
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]


# The strokes of each digit, as people write them, in a square from (0, 0) to (1, 1).
STROKES: dict[int, list[list[Point]]] = {
    0: [arc(0.5, 0.5, 0.32, 0.48, -80, 280)],
    1: [[(0.5, 0.02), (0.5, 0.98)]],
    2: [[*arc(0.48, 0.28, 0.34, 0.26, -170, 50), (0.15, 0.95), (0.88, 0.95)]],
    3: [arc(0.42, 0.26, 0.36, 0.24, -150, 90) + arc(0.42, 0.73, 0.42, 0.24, -90, 150)],
    4: [[(0.3, 0.05), (0.15, 0.58), (0.85, 0.58)], [(0.68, 0.1), (0.64, 0.98)]],
    5: [[(0.3, 0.05), (0.22, 0.45), *arc(0.42, 0.69, 0.38, 0.27, -110, 150)], [(0.3, 0.05), (0.82, 0.05)]],
    6: [[(0.66, 0.03), (0.35, 0.3), *arc(0.48, 0.72, 0.27, 0.25, 180, -180)]],
    7: [[(0.12, 0.06), (0.85, 0.06), (0.4, 0.97)]],
    8: [arc(0.5, 0.27, 0.25, 0.24, 90, -270) + arc(0.5, 0.75, 0.31, 0.24, -90, 270)],
    9: [[*arc(0.46, 0.29, 0.28, 0.26, -10, -370), (0.68, 0.98)]],
}


def strokes(digit: int, chance: random.Random) -> list[list[Point]]:
    """The strokes of a digit in pixels of the square, which has 280, as a hand could draw them."""
    slant, size = chance.uniform(-0.1, 0.3), chance.uniform(110, 200)
    width = size * chance.uniform(0.6, 0.9)
    left, top = chance.uniform(25, 255 - width), chance.uniform(25, 255 - size)

    def moved(x: float, y: float) -> Point:
        x, y = x + chance.gauss(0, 0.018), y + chance.gauss(0, 0.018)
        return left + width * x + slant * size * (0.5 - y), top + size * y

    return [[moved(*point) for point in stroke] for stroke in STROKES[digit]]


def draw(page: Page, lines: list[list[Point]], steps: int = 2) -> None:
    square = page.locator("canvas").bounding_box() or {}
    for line in lines:
        (x, y), *others = [(square["x"] + x, square["y"] + y) for x, y in line]
        page.mouse.move(x, y)
        page.mouse.down()
        for x, y in others:
            page.mouse.move(x, y, steps=steps)
        page.mouse.up()
