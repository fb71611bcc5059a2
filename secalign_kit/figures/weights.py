"""What an adapter changed in the weights."""

from matplotlib.figure import Figure

from .canvas import drawable, sheet
from .palette import INK, PAPER


def update_norms(table) -> Figure:
    """How much an adapter changed each matrix: layers by kinds, in percent of the weights' norm.

    `table`: a DataFrame with `layer` (int), `matrix` (name) and `relative` (norm of the update
    divided by the norm of the weights). Raises ValueError for missing columns or no rows.
    """
    missing = [name for name in ("layer", "matrix", "relative") if name not in table.columns]
    if missing or not len(table):
        raise ValueError(f"update_norms: columns {missing} missing or no rows; measure the layers.")
    matrices = list(dict.fromkeys(table["matrix"]))
    grid = 100 * table.pivot(index="layer", columns="matrix", values="relative")[matrices]
    top = max(float(grid.max().max()), 1e-9)
    fig, axes = sheet(1.05 * len(matrices) + 1.6, 0.42 * len(grid) + 1.3)
    image = axes.imshow(grid, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    for row, values in enumerate(grid.to_numpy()):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.1f}%", ha="center", va="center", fontsize=8.5,
                      color=PAPER if value > 0.6 * top else INK)
    axes.set_xticks(range(len(matrices)), [drawable(m, 30) for m in matrices], fontsize=8.5)
    axes.set_yticks(range(len(grid)), grid.index, fontsize=8.5)
    axes.set_xlabel("matrix", fontsize=9.5)
    axes.set_ylabel("layer", fontsize=9.5)
    axes.set_title("Size of the update", fontsize=11, loc="left", weight="bold", color=INK)
    fig.colorbar(image, ax=axes, label="% of the norm of the weights")
    return fig
