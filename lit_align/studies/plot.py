"""The studies' figures on matplotlib: grids of panels, and images side by side."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

DPI = 100
STYLE = {"font.size": 11, "axes.titlesize": 12, "legend.fontsize": 10, "axes.labelsize": 11}
BLUE, ORANGE, GREEN, PINK, RED, BLACK = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#000000"  # Okabe-Ito


def panels(rows: int, columns: int, width: float = 3.2, height: float = 2.6) -> tuple[Figure, list[list[Axes]]]:
    """A figure of rows x columns panels, each width x height inches."""
    with rc_context(STYLE):
        figure = Figure((columns * width, rows * height), DPI, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#e6e6e6")
    return figure, axes.tolist()


def legend(ax: Axes, where: str) -> None:
    """The legend of a panel, inside it, e.g. at "upper left"."""
    ax.legend(loc=where, fontsize=STYLE["legend.fontsize"], frameon=False, handlelength=1.5, labelspacing=0.2)


def gallery(images: dict[str, Image.Image], path: Path) -> None:
    """Writes images of one size side by side, pixel for pixel, each under its title."""
    w, h = next(iter(images.values())).size
    gap, head = 30, 40  # pixels
    wide, tall = len(images) * (w + gap) - gap, h + head
    figure = Figure((wide / DPI, tall / DPI), DPI)
    for i, (title, image) in enumerate(images.items()):
        ax = figure.add_axes((i * (w + gap) / wide, 0, w / wide, h / tall))
        ax.imshow(image, interpolation="none", aspect="auto")
        ax.axis("off")
        ax.set_title(title, fontsize=14, loc="left")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG that depends on the figure alone."""
    figure.savefig(path, metadata={"Software": None})
