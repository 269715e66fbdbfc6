"""A web page that needs no network: the one template of reports, evidence, tables and watched runs."""

from collections.abc import Iterable
from html import escape
from typing import Any

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">{head}
<style>
 :root {{ color-scheme: light dark; }}
 body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
 h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.5rem; }}
 table {{ border-collapse: collapse; }} td, th {{ padding: .2rem 1rem .2rem 0; text-align: left; }}
 td.n {{ text-align: right; font-variant-numeric: tabular-nums; }} p.small, pre {{ font-size: .85rem; opacity: .8; }}
 img {{ image-rendering: pixelated; width: 100%; max-width: 44rem; }} pre {{ white-space: pre-wrap; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def page(title: str, parts: Iterable[Any], *, refresh: int | None = None) -> str:
    """One page of HTML texts and plotly figures, one below the other; plotly's code is in it once, if there is a figure.

    refresh: seconds after which a browser loads the page again
    """
    body, drawn = [], False
    for part in parts:
        if isinstance(part, str):
            body.append(part)
        else:
            body.append(part.to_html(full_html=False, include_plotlyjs=not drawn, config={"displayModeBar": False}))
            drawn = True
    head = "" if refresh is None else f'\n<meta http-equiv="refresh" content="{refresh}">'
    return PAGE.format(title=escape(title), head=head, body="\n".join(body))
