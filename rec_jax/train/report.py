"""A run's page: `report.html`, self-contained, and the same curves as `curves.png`."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rec_jax.files import write_atomic
from rec_jax.metrics import signed
from rec_jax.run import Run
from rec_jax.train.log import read_metrics

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
       color: #1c1e21; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: #f4f5f7; padding: 1rem; overflow-x: auto; } img { max-width: 100%; }
"""


def write_report(run: Run, summary: Mapping[str, Any]) -> None:
    """Write page and curves, each whole or not at all, from `metrics.jsonl` and a summary."""
    lines = read_metrics(run.metrics_path)
    train = [line for line in lines if line["kind"] == "train"]
    figures = {name: value for name, value in summary.items() if name != "protocol"}
    valid = [line for line in lines if line["kind"] == "valid"
             and line.get(summary["metric"]) is not None]
    parts = [f"<h1>{html.escape(run.folder.name)}</h1>", _table(figures)]
    if train:
        picture = _picture(train, valid, str(summary["metric"]))
        write_atomic(run.curves_path, picture)
        parts.append(f"<p>{image('training loss and validation metrics', picture)}")
    if valid:
        metric = str(summary["metric"])
        after = [line for line in valid if line["step"]] or valid  # not before training
        best = max(after, key=lambda line: signed(metric, line[metric]))
        parts += [f"<h2>Validation at the best step, {best['step']}</h2>",
                  _table({name: value for name, value in best.items()
                          if name not in ("kind", "step", "seconds", "protocol")})]
    if "protocol" in summary:
        parts += ["<h2>How validation measures</h2>", _table(summary["protocol"])]
    parts += ["<h2>Config</h2>", f"<pre>{html.escape(run.config_path.read_text())}</pre>"]
    head = f"<meta charset=utf-8><title>{html.escape(run.folder.name)}</title>"
    page = (f"<!doctype html><html lang=en>{head}<style>{_STYLE}</style>{''.join(parts)}"
            "</html>\n")
    write_atomic(run.report_path, page)


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{html.escape(name.replace('_', ' '))}<td class=number>{_show(value)}"
                   for name, value in values.items())
    return f"<table>{rows}</table>"


def _show(value: Any) -> str:
    return f"{value:,.4f}" if isinstance(value, float) else html.escape(str(value))


def _picture(train: Sequence[Mapping[str, Any]], valid: Sequence[Mapping[str, Any]],
             metric: str) -> bytes:
    figure, left, right = two_axes()
    left.plot([line["epoch"] for line in train], [line["loss"] for line in train], lw=1)
    left.set(xlabel="epoch", ylabel="training loss")
    names = sorted({name for line in valid for name in line if "@10" in name} | {metric})
    for name in names:
        points = [(line["epoch"], line[name]) for line in valid if name in line]
        if points:
            right.plot(*zip(*points, strict=True), marker="o", ms=3, lw=1, label=name)
    right.set(xlabel="epoch", ylabel="validation")
    if right.lines:
        right.legend(frameon=False)
    return png_of(figure)


def two_axes() -> tuple[Any, Any, Any]:
    """A figure, and two axes side by side in it."""
    # Object-oriented matplotlib: no global figure, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, *figure.subplots(1, 2)


def png_of(figure: Any) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def image(alt: str, picture: bytes) -> str:
    """An element of a page that holds the PNG itself."""
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return f'<img alt="{alt}" src="{source}">'
