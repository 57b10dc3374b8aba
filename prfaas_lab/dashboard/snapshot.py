"""The screen as a picture, for a README or a report."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from prfaas_lab.dashboard.render import Screen
from prfaas_lab.dashboard.state import ScreenState

_FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    '-matrix">', '-matrix" xml:space="preserve">'
)
"""rich's template without its fonts from a CDN (a picture should not call home), and with blanks kept."""


def snapshot(state: ScreenState, path: Path, *, width: int = 120, height: int = 36) -> None:
    """Write the screen as it would be drawn on a terminal of that size, as SVG."""
    console = Console(
        record=True, width=width, height=height, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", legacy_windows=False,
    )  # fmt: skip
    console.print(Screen(state, height))
    title = state.tally.run.scenario if state.tally.run else "prfaas-lab"
    console.save_svg(str(path), title=f"prfaas-lab scenario {title}", code_format=_FORMAT)
