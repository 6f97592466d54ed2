"""A figure as one HTML page that answers the mouse: the SVG, its numbers, and a few lines of JavaScript; no network."""

import json

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlvr_sweeps.drawing import Hot
from rlvr_sweeps.panels import Plot


def as_page(plot: Plot, svg: str, hot: Hot) -> str:
    """The page. A line of the legend hides its series when clicked; a point under the mouse says its numbers."""
    data = json.dumps({"ids": hot.ids, "points": hot.points}, ensure_ascii=False).replace("</", "<\\/")
    environment = Environment(loader=PackageLoader("rlvr_sweeps"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("figure.html.j2").render(title=plot.title, caption=plot.caption, svg=svg, data=data)
